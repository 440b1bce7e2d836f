import { useCallback, useEffect, useMemo, useRef, useState } from 'react'

export interface ChatOptions {
  /** The gateway's address, such as https://gateway.example.com. */
  gateway: string
  /** The agent or route that answers. */
  agent: string
  /** Your server's address that hands out tokens; it answers as POST /api/v1/tokens does. */
  tokens: string
}

export type Rating = 'like' | 'dislike' | null

export interface Message {
  role: 'user' | 'assistant'
  text: string
  /** Of an answer: what `rate` takes. */
  id?: string
  rating?: Rating
  citations?: { title?: string; text?: string; url?: string }[]
  /** `url` may be empty, and links may expire. */
  files?: { name?: string; url?: string }[]
}

export interface Conversation {
  id: string
  title: string
  updated_at: string
}

/** For a bot that waits: the id or the title of a button, the values of a form, or a text. */
export interface Reply {
  action?: string
  inputs?: Record<string, unknown>
  text?: string
}

/** `aborted` and `error` last until the next question. */
export type Status = 'idle' | 'streaming' | 'error' | 'aborted'

interface Turn {
  id: string
  question: string
  answer: string
  files: { name: string; url: string; belongs_to: 'question' | 'answer' }[]
  citations: NonNullable<Message['citations']>
  feedback: { rating: Rating } | null
}

const STOP_MS = 3000

/** A conversation with one agent of the gateway, and the user's earlier ones. */
export function useChat({ gateway, agent, tokens }: ChatOptions) {
  const [messages, setMessages] = useState<Message[]>([])
  const [status, setStatus] = useState<Status>('idle')
  const [error, setError] = useState<string | null>(null)
  const [waitsFor, setWaitsFor] = useState<object | null>(null)
  const [older, setOlder] = useState<string | null>(null)
  const running = useRef<AbortController | null>(null)
  const isLoading = useRef(false)
  const conversation = useRef<string | undefined>(undefined)
  const client = useMemo(() => new Client({ gateway, agent, tokens }), [gateway, agent, tokens])

  const reset = useCallback(() => {
    running.current?.abort()
    running.current = null
    conversation.current = undefined
    setMessages([])
    setStatus('idle')
    setError(null)
    setWaitsFor(null)
    setOlder(null)
  }, [])

  const run = useCallback(
    async (query: string, path: string, body: object) => {
      if (running.current) return
      const controller = (running.current = new AbortController())
      const change = (more: (last: Message) => Partial<Message>) =>
        setMessages((before) => {
          const last = before[before.length - 1]
          return [...before.slice(0, -1), { ...last, ...more(last) }]
        })
      setMessages((before) => [...before, { role: 'user', text: query }, { role: 'assistant', text: '' }])
      setStatus('streaming')
      setError(null)
      setWaitsFor(null)
      let status: Status = 'idle'
      try {
        for await (const chunk of client.stream(path, body, controller.signal)) {
          if (running.current !== controller) return
          conversation.current = chunk.id
          const text = chunk.choices[0]?.delta.content
          if (text) change((last) => ({ text: last.text + text }))
          if (!chunk.gateway) continue
          const { message_id: id, citations, files, interaction, stopped } = chunk.gateway
          change(() => ({ id, citations, files, rating: null }))
          setWaitsFor(interaction ?? null)
          if (stopped) status = 'aborted'
        }
      } catch (problem) {
        status = controller.signal.aborted ? 'aborted' : 'error'
        if (status === 'error' && running.current === controller) setError((problem as Error).message)
      }
      if (running.current !== controller) return // reset or unmounted meanwhile
      running.current = null
      setStatus(status)
    },
    [client],
  )

  const ask = useCallback(
    (query: string) => run(query, '/chat', { query, conversation_id: conversation.current }),
    [run],
  )

  /** Answers a bot that waits, as `waitsFor` says. */
  const reply = useCallback(
    async (reply: Reply) => {
      if (!conversation.current) return
      const words = [reply.action, ...Object.values(reply.inputs ?? {}), reply.text]
      await run(words.filter(Boolean).join('\n'), `${place(conversation.current)}/continue`, reply)
    },
    [run],
  )

  /** Ends the answer under way. The gateway asks the bot to stop; if that fails, the stream is cut. */
  const stop = useCallback(async () => {
    const controller = running.current
    if (!controller) return
    const path = conversation.current && `${place(conversation.current)}/stop`
    const signal = AbortSignal.timeout(STOP_MS)
    const call = path && client.call<{ stopped: boolean }>('POST', path, undefined, signal)
    const done = await Promise.resolve(call).catch(() => undefined)
    if (!(done && done.stopped)) controller.abort()
  }, [client])

  /** A page of the user's conversations, the newest first; `next` is the `before` of the next page. */
  const list = useCallback(
    (before?: string) => {
      const query = new URLSearchParams({ agent, ...(before && { before }) })
      return client.call<{ conversations: Conversation[]; next: string | null }>('GET', `/conversations?${query}`)
    },
    [client, agent],
  )

  /** Puts a page of turns before those that are shown, unless another conversation is open by then. */
  const load = useCallback(
    async (id: string, before: string | null) => {
      const query = before ? `?before=${encodeURIComponent(before)}` : ''
      type Page = { messages: Turn[]; next: string | null }
      const page = await client.call<Page>('GET', `${place(id)}/messages${query}`)
      if (conversation.current !== id) return
      setMessages((shown) => [...page.messages.flatMap(messagesOf), ...shown])
      setOlder(page.next)
    },
    [client],
  )

  /** Opens an earlier conversation with its latest turns. */
  const open = useCallback(
    async (id: string) => {
      reset()
      conversation.current = id
      await load(id, null)
      const { waits_for } = await client.call<{ waits_for: object | null }>('GET', place(id))
      if (conversation.current === id) setWaitsFor(waits_for)
    },
    [client, load, reset],
  )

  /** Shows older turns; null if there are none. */
  const showOlder = useMemo(() => {
    if (!older) return null
    return async () => {
      if (isLoading.current) return // a second click
      isLoading.current = true
      await load(conversation.current ?? '', older).finally(() => { isLoading.current = false })
    }
  }, [load, older])

  /** Keeps the user's opinion of an answer; null takes it back. */
  const rate = useCallback(
    async (id: string, rating: Rating) => {
      const path = `${place(conversation.current ?? '')}/messages/${encodeURIComponent(id)}/feedback`
      await client.call('POST', path, { rating })
      setMessages((before) => before.map((one) => (one.id === id ? { ...one, rating } : one)))
    },
    [client],
  )

  const rename = useCallback((id: string, title: string) => client.call('PUT', place(id), { title }), [client])
  const remove = useCallback((id: string) => client.call('DELETE', place(id)), [client])

  // A new address or agent is a new conversation; an unmounted component asks nothing more.
  useEffect(() => reset, [client, reset])

  return { messages, status, error, waitsFor, ask, reply, stop, reset, list, open, showOlder, rate, rename, remove }
}

function place(id: string) {
  return `/conversations/${encodeURIComponent(id)}`
}

function messagesOf({ id, question, answer, files, citations, feedback }: Turn): Message[] {
  const of = (side: string) => files.filter((file) => file.belongs_to === side)
  const rating = feedback?.rating ?? null
  return [
    { role: 'user', text: question, files: of('question') },
    { role: 'assistant', text: answer, id: id || undefined, rating, citations, files: of('answer') },
  ]
}

/** Calls of the gateway with a token of the user, which is kept while it is valid. */
class Client {
  private token = ''
  private refreshAt = 0

  private options: ChatOptions

  constructor(options: ChatOptions) {
    this.options = options
  }

  /** The `data` of a call. Throws an Error whose message is for the user. */
  async call<Data>(method: string, path: string, body?: object, signal?: AbortSignal): Promise<Data> {
    const response = await this.fetch(method, path, body, signal)
    return (await response.json()).data
  }

  /** The chunks of an answer, which is complete if nothing is thrown. */
  async *stream(path: string, body: object, signal: AbortSignal) {
    const response = await this.fetch('POST', path, { ...body, stream: true, detail: true }, signal)
    for await (const data of events(response.body!)) {
      if (data === '[DONE]') return
      const chunk = JSON.parse(data)
      if (chunk.error) throw new Error(chunk.error.message)
      yield chunk
    }
    throw new Error('The connection ended before the answer did.')
  }

  private async fetch(method: string, path: string, body?: object, signal?: AbortSignal) {
    let response = await this.send(method, path, body, signal)
    if (response.status === 401) { // the token or its key has ended: try a new token once
      this.refreshAt = 0
      response = await this.send(method, path, body, signal)
    }
    if (!response.ok) throw new Error(await sentence(response))
    return response
  }

  private async send(method: string, path: string, body?: object, signal?: AbortSignal) {
    const { gateway, agent, tokens } = this.options
    if (Date.now() >= this.refreshAt) {
      const response = await fetch(tokens, { method: 'POST', signal })
      if (!response.ok) throw new Error(await sentence(response))
      const { data } = await response.json()
      this.token = data.token
      this.refreshAt = Date.now() + (data.expires_in - 30) * 1000
    }
    return fetch(`${gateway}/api/v1${path}`, {
      method,
      headers: {
        Authorization: `Bearer ${this.token}`,
        Agent: encodeURIComponent(agent),
        ...(body && { 'Content-Type': 'application/json' }),
      },
      body: body && JSON.stringify(body),
      signal,
    })
  }
}

/** The gateway's own sentence about an error. */
async function sentence(response: Response): Promise<string> {
  const body = await response.json().catch(() => null)
  return body?.msg ?? `${response.status} ${response.statusText}`
}

/** The data of each event of a stream. Comments, which keep the connection alive, and named events have none. */
async function* events(body: ReadableStream<Uint8Array<ArrayBuffer>>) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader()
  let text = ''
  for (;;) {
    const { value, done } = await reader.read()
    if (done) return
    const blocks = (text + value).split('\n\n')
    text = blocks.pop() ?? ''
    for (const block of blocks) {
      if (block.startsWith('data: ')) yield block.slice(6)
    }
  }
}
