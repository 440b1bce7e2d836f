/**
 * Chats, earlier conversations and uploads of a WeChat mini-program. It holds no key: your server
 * hands out tokens for the user of `wx.login`. Needs base library 2.20.1 or newer, for
 * `enableChunked`.
 */
class Gateway {
  /** @param {{gateway: string, agent: string, tokens: string}} options */
  constructor({ gateway, agent, tokens }) {
    this.gateway = gateway
    this.agent = agent
    this.tokens = tokens
    this.conversation = undefined
    this.token = ''
    this.refreshAt = 0
  }

  /**
   * Ask; `onText` gets the answer's text as it arrives. `done` becomes true at the answer's end and
   * false after `stop()`; it is rejected with an Error whose message is for the user. `notes` is then
   * what the gateway says of the answer, such as its `message_id`.
   * @param {string} query
   * @param {{onText: (text: string) => void, files?: object[]}} options
   */
  ask(query, { onText, files = [] }) {
    let stopped = false
    let abort = () => {}
    const answer = { notes: null, done: Promise.resolve(false), stop: async () => {
      stopped = true
      const asked = this.conversation && this.call('POST', `${place(this.conversation)}/stop`, {}, STOP_MS)
      const data = await Promise.resolve(asked).catch(() => null)
      if (!(data && data.stopped)) abort() // the gateway then stops the bot
    } }
    const attempt = async () => {
      const header = await this.headers()
      return stopped ? { status: 0, error: '' } : stream({
        url: `${this.gateway}/api/v1/chat`,
        header,
        data: { query, files, stream: true, conversation_id: this.conversation },
        onChunk: (chunk) => {
          if (stopped) return
          this.conversation = chunk.id
          answer.notes = chunk.gateway || null
          const choice = chunk.choices[0]
          if (choice && choice.delta.content) onText(choice.delta.content)
        },
        onTask: (task) => { abort = () => task.abort() },
      })
    }
    const run = async () => {
      try {
        let result = await attempt()
        if (result.status === 401) { // the token or its key has ended: try a new token once
          this.refreshAt = 0
          result = await attempt()
        }
        if (stopped) return false
        if (result.error) throw new Error(result.error)
        return true
      } catch (error) {
        if (stopped) return false
        throw error
      }
    }
    answer.done = run()
    return answer
  }

  /**
   * A page of the user's conversations, the newest first; `next` is the `before` of the next page.
   * @param {string} [before]
   * @returns {Promise<{conversations: {id: string, title: string}[], next: string | null}>}
   */
  conversations(before) {
    const query = before ? `&before=${encodeURIComponent(before)}` : ''
    return this.call('GET', `/conversations?agent=${encodeURIComponent(this.agent)}${query}`)
  }

  /**
   * A page of a conversation's turns, the oldest first; later questions continue it. `next` is the
   * `before` of older turns.
   * @param {string} id
   * @param {string} [before]
   * @returns {Promise<{messages: object[], next: string | null}>}
   */
  async open(id, before) {
    const query = before ? `?before=${encodeURIComponent(before)}` : ''
    const page = await this.call('GET', `${place(id)}/messages${query}`)
    this.conversation = id
    return page
  }

  /**
   * Keep the user's opinion of an answer of the open conversation; null takes it back.
   * @param {string} message
   * @param {'like' | 'dislike' | null} rating
   */
  rate(message, rating) {
    return this.call('POST', `${place(this.conversation)}/messages/${encodeURIComponent(message)}/feedback`, { rating })
  }

  /** The `data` of a call. It is rejected with an Error whose message is for the user. */
  async call(method, path, data, timeout) {
    const attempt = async () => {
      const header = await this.headers()
      return new Promise((resolve, reject) => wx.request({
        url: `${this.gateway}/api/v1${path}`,
        method,
        header,
        data,
        timeout,
        success: resolve,
        fail: ({ errMsg }) => reject(new Error(errMsg)),
      }))
    }
    let answer = await attempt()
    if (answer.statusCode === 401) { // the token or its key has ended: try a new token once
      this.refreshAt = 0
      answer = await attempt()
    }
    if (answer.statusCode !== 200) throw new Error(sentence(answer.statusCode, answer.data))
    return answer.data.data
  }

  /**
   * Upload a file that the user chose; give what comes back to `ask` in `files`.
   * @param {string} filePath
   * @returns {Promise<object>}
   */
  async upload(filePath) {
    const header = await this.headers()
    return new Promise((resolve, reject) => wx.uploadFile({
      url: `${this.gateway}/api/v1/upload`,
      filePath,
      name: 'file',
      header,
      success: ({ statusCode, data }) =>
        statusCode === 200 ? resolve(JSON.parse(data).data) : reject(new Error(sentence(statusCode, data))),
      fail: ({ errMsg }) => reject(new Error(errMsg)),
    }))
  }

  async headers() {
    if (Date.now() >= this.refreshAt) {
      const { code } = await wx.login()
      const { token, expires_in } = await new Promise((resolve, reject) => wx.request({
        url: this.tokens,
        method: 'POST',
        data: { code },
        success: ({ statusCode, data }) =>
          statusCode === 200 ? resolve(Object(data).data) : reject(new Error(sentence(statusCode, data))),
        fail: ({ errMsg }) => reject(new Error(errMsg)),
      }))
      this.token = token
      this.refreshAt = Date.now() + (expires_in - 30) * 1000
    }
    return { Authorization: `Bearer ${this.token}`, Agent: encodeURIComponent(this.agent) }
  }
}

const STOP_MS = 3000

function place(id) {
  return `/conversations/${encodeURIComponent(id)}`
}

/**
 * One streamed POST: its status, and what went wrong or ''.
 * @returns {Promise<{status: number, error: string}>}
 */
function stream({ url, header, data, onChunk, onTask }) {
  return new Promise((resolve, reject) => {
    const decode = utf8Decoder()
    let text = '' // what has arrived and is not yet a whole event
    let error = 'The connection ended before the answer did.'
    const task = wx.request({
      url,
      method: 'POST',
      header,
      data,
      enableChunked: true,
      timeout: 600000, // instead of 60 s: answers may take minutes
      success: ({ statusCode, data }) => resolve(
        // The body of an error arrives as a chunk or as `data`: devices differ.
        statusCode === 200 ? { status: 200, error } : { status: statusCode, error: sentence(statusCode, data || text) },
      ),
      fail: ({ errMsg }) => reject(new Error(errMsg)),
    })
    task.onChunkReceived(({ data }) => {
      const blocks = (text + decode(data)).split('\n\n')
      text = blocks.pop() || ''
      for (const block of blocks) {
        if (block === 'data: [DONE]') error = ''
        else if (block.startsWith('data: ')) { // others are comments that keep the connection alive
          const chunk = JSON.parse(block.slice(6))
          if (chunk.error) error = chunk.error.message
          else onChunk(chunk)
        }
      }
    })
    onTask(task)
  })
}

/** The gateway's own sentence about an error. */
function sentence(statusCode, body) {
  try {
    return (typeof body === 'string' ? JSON.parse(body) : body).msg || `HTTP ${statusCode}`
  } catch {
    return `HTTP ${statusCode}`
  }
}

/**
 * Decodes UTF-8 in pieces: a character may begin in one chunk and end in the next, and mini-programs
 * have no TextDecoder that waits for the rest of it.
 */
function utf8Decoder() {
  let point = 0
  let missing = 0 // bytes of the character under way
  return (buffer) => {
    let text = ''
    for (const byte of new Uint8Array(buffer)) {
      if (missing && (byte & 0xc0) === 0x80) {
        point = (point << 6) | (byte & 0x3f)
        missing -= 1
        if (!missing) text += point > 0x10ffff ? '\ufffd' : String.fromCodePoint(point)
        continue
      }
      if (missing) text += '\ufffd' // the character before was cut
      missing = byte >= 0xf8 ? 0 : byte >= 0xf0 ? 3 : byte >= 0xe0 ? 2 : byte >= 0xc0 ? 1 : 0
      if (missing) point = byte & (0x3f >> missing)
      else text += byte < 0x80 ? String.fromCharCode(byte) : '\ufffd'
    }
    return text
  }
}

module.exports = { Gateway, utf8Decoder }
