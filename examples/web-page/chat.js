const STOP_MS = 3000

/** One conversation: a new one, or an earlier one by its `id`. */
export class Chat {
  #gateway
  #running = null

  constructor(gateway, id = null) {
    this.#gateway = gateway
    this.id = id
  }

  /** Yields {text, notes}: the answer's text as it arrives; `notes` is the gateway's part of the last chunk. */
  async *ask(query) {
    yield* this.#answer('/chat', { query, conversation_id: this.id ?? undefined })
  }

  /** The same, for the reply to a bot that waits: {action}, {inputs} or {text}. */
  async *reply(reply) {
    yield* this.#answer(`${this.#path}/continue`, reply)
  }

  async *#answer(path, body) {
    const running = this.#running = new AbortController()
    try {
      for await (const chunk of this.#gateway.stream(path, body, running.signal)) {
        this.id = chunk.id
        yield { text: chunk.choices[0]?.delta.content ?? '', notes: chunk.gateway }
      }
    } catch (error) {
      if (!running.signal.aborted) throw error
    } finally {
      if (this.#running === running) this.#running = null
    }
  }

  /** Ends the answer under way: its stream then ends as a whole one does. If that fails, it is cut. */
  async stop() {
    const running = this.#running
    const asked = this.id && this.#call('POST', '/stop', undefined, AbortSignal.timeout(STOP_MS))
    const { stopped } = (await asked?.catch(() => null)) ?? {}
    if (!stopped) running?.abort()
  }

  /** Leaves the conversation; the gateway then stops the bot. */
  close() {
    this.#running?.abort()
  }

  /** {title, waits_for, …} */
  about() {
    return this.#call('GET', '')
  }

  /** {messages, next}: a page of turns, the oldest first; `next` leads to older ones. */
  turns(before) {
    return this.#call('GET', before ? `/messages?before=${encodeURIComponent(before)}` : '/messages')
  }

  rename(title) {
    return this.#call('PUT', '', { title })
  }

  delete() {
    return this.#call('DELETE', '')
  }

  /** `rating` is like, dislike, or null to take it back. */
  rate(message, rating) {
    return this.#call('POST', `/messages/${encodeURIComponent(message)}/feedback`, { rating })
  }

  /** Questions that the user may want to ask next; none if the bot suggests none. */
  async suggestions(message) {
    const asked = this.#call('GET', `/messages/${encodeURIComponent(message)}/suggestions`)
    return (await asked.catch(() => ({ suggestions: [] }))).suggestions
  }

  get #path() {
    return `/conversations/${encodeURIComponent(this.id)}`
  }

  #call(method, path, body, signal) {
    return this.#gateway.call(method, this.#path + path, body, signal)
  }
}
