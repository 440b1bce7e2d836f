/** A conversation with one agent of the gateway. It holds no key: your server hands out tokens. */
export class Chat {
  conversation = null
  #token = null
  #refreshAt = 0

  constructor({ gateway, agent, tokens }) {
    Object.assign(this, { gateway, agent, tokens })
  }

  /** Yields the answer's text as it arrives. Throws an Error whose message is for the user. */
  async *ask(query, signal) {
    let response = await this.#post(query, signal)
    if (response.status === 401) { // the token or its key has ended: try a new token once
      this.#refreshAt = 0
      response = await this.#post(query, signal)
    }
    if (!response.ok) throw new Error(await sentence(response))
    for await (const data of events(response.body)) {
      if (data === '[DONE]') return
      const chunk = JSON.parse(data)
      if (chunk.error) throw new Error(chunk.error.message)
      this.conversation = chunk.id
      yield chunk.choices[0]?.delta.content ?? ''
    }
    throw new Error('The connection ended before the answer did.')
  }

  async #post(query, signal) {
    if (Date.now() >= this.#refreshAt) await this.#newToken(signal)
    return fetch(`${this.gateway}/api/v1/chat`, {
      method: 'POST',
      headers: {
        Authorization: `Bearer ${this.#token}`,
        Agent: encodeURIComponent(this.agent),
        'Content-Type': 'application/json',
      },
      body: JSON.stringify({ query, stream: true, conversation_id: this.conversation ?? undefined }),
      signal,
    })
  }

  async #newToken(signal) {
    const response = await fetch(this.tokens, { method: 'POST', signal })
    if (!response.ok) throw new Error(await sentence(response))
    const { data } = await response.json()
    this.#token = data.token
    this.#refreshAt = Date.now() + (data.expires_in - 30) * 1000
  }
}

/** The gateway's own sentence about an error. */
async function sentence(response) {
  const body = await response.json().catch(() => null)
  return body?.msg ?? `${response.status} ${response.statusText}`
}

/** The data of each event of a stream. Comments, which keep the connection alive, have none. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader()
  let text = ''
  for (;;) {
    const { value, done } = await reader.read()
    if (done) return
    const blocks = (text + value).split('\n\n')
    text = blocks.pop()
    for (const block of blocks) {
      if (block.startsWith('data: ')) yield block.slice(6)
    }
  }
}
