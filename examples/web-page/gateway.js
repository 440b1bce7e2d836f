/** The gateway, for the user of this page. It holds no key: your server hands out tokens. */
export class Gateway {
  #token = null
  #refreshAt = 0

  constructor({ gateway, agent, tokens }) {
    Object.assign(this, { address: gateway, agent, tokens })
  }

  /** The `data` of a call under /api/v1. Throws an Error with `status`; its message is for the user. */
  async call(method, path, body, signal) {
    const response = await this.#fetch(method, path, body, signal)
    return (await response.json()).data
  }

  /** Yields the chunks of an answer. Throws as `call` does, also for an answer that is not complete. */
  async *stream(path, body, signal) {
    const response = await this.#fetch('POST', path, { ...body, stream: true, detail: true }, signal)
    for await (const data of events(response.body)) {
      if (data === '[DONE]') return
      const chunk = JSON.parse(data)
      if (chunk.error) throw new Error(chunk.error.message)
      yield chunk
    }
    throw new Error('The connection ended before the answer did.')
  }

  async #fetch(method, path, body, signal) {
    let response = await this.#send(method, path, body, signal)
    if (response.status === 401) { // the token or its key has ended: try a new token once
      this.#refreshAt = 0
      response = await this.#send(method, path, body, signal)
    }
    if (!response.ok) throw await failure(response)
    return response
  }

  async #send(method, path, body, signal) {
    if (Date.now() >= this.#refreshAt) await this.#newToken(signal)
    const headers = { Authorization: `Bearer ${this.#token}`, Agent: encodeURIComponent(this.agent) }
    if (body) headers['Content-Type'] = 'application/json'
    return fetch(`${this.address}/api/v1${path}`, { method, headers, body: body && JSON.stringify(body), signal })
  }

  async #newToken(signal) {
    const response = await fetch(this.tokens, { method: 'POST', signal })
    if (!response.ok) throw await failure(response)
    const { data } = await response.json()
    this.#token = data.token
    this.#refreshAt = Date.now() + (data.expires_in - 30) * 1000
  }
}

/** An Error with the gateway's own sentence. */
async function failure(response) {
  const body = await response.json().catch(() => null)
  const message = body?.msg ?? `${response.status} ${response.statusText}`
  return Object.assign(new Error(message), { status: response.status })
}

/** The data of each event of a stream. Comments, which keep the connection alive, and named events have none. */
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
