// Chats by OpenAI's SDK, conversations by plain HTTP: GATEWAY_KEY=sk-gw-… node chat.mjs
// Needs the package openai. It runs on your server: a key is not for a page.
import OpenAI from 'openai'

const { GATEWAY = 'http://localhost:3000', GATEWAY_KEY, AGENT = 'dify', END_USER = 'visitor-7' } = process.env
if (!GATEWAY_KEY) {
  console.error('Set GATEWAY_KEY to a key of the gateway.')
  process.exit(1)
}
const sdk = new OpenAI({ baseURL: `${GATEWAY}/v1`, apiKey: GATEWAY_KEY })

/** Prints the answer as it arrives. Returns what the gateway says of it, such as its `message_id`. */
async function ask(question, conversation) {
  const stream = await sdk.chat.completions.create({
    model: AGENT,
    messages: [{ role: 'user', content: question }],
    user: END_USER,
    stream: true,
    conversation_id: conversation, // the SDK sends members that it does not know, too
  })
  let notes = {}
  for await (const chunk of stream) {
    notes = chunk.gateway ?? notes
    process.stdout.write(chunk.choices[0]?.delta.content ?? '')
  }
  console.log()
  return notes
}

/** The `data` of a call under /api/v1. */
async function call(method, path, { body, query = {} } = {}) {
  const response = await fetch(`${GATEWAY}/api/v1${path}?${new URLSearchParams(query)}`, {
    method,
    headers: { Authorization: `Bearer ${GATEWAY_KEY}`, 'Content-Type': 'application/json' },
    body: body && JSON.stringify(body),
  })
  const answer = await response.json()
  if (!response.ok) throw new Error(answer.msg)
  return answer.data
}

/** Yields the entries of all pages, the first page first. */
async function* pages(path, member) {
  let query = { user: END_USER }
  for (;;) {
    const page = await call('GET', path, { query })
    yield* page[member]
    if (!page.next) return
    query = { user: END_USER, before: page.next }
  }
}

const first = await ask('My bicycle squeaks. Why?')
const conversation = first.conversation_id
await ask('And how do I mend it?', conversation)

for await (const one of pages('/conversations', 'conversations')) console.log(`${one.updated_at}  ${one.title}`)
const path = `/conversations/${encodeURIComponent(conversation)}`
for await (const turn of pages(`${path}/messages`, 'messages')) {
  console.log(`Q: ${turn.question}\nA: ${turn.answer.slice(0, 60)}…`)
}

const rated = `${path}/messages/${encodeURIComponent(first.message_id)}/feedback`
await call('POST', rated, { body: { rating: 'like' }, query: { user: END_USER } })

const report = await call('DELETE', `/users/${encodeURIComponent(END_USER)}/data`)
console.log(`Deleted: ${report.conversations.length} conversation(s)`)
