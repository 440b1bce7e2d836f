/**
 * Runs the mini-program outside WeChat: `wx` over Node's HTTP, with bodies handed on in pieces.
 * argv: the mini-program's folder, and JSON {gateway, agent, tokens, size, errors, steps}.
 * `size` is the bytes in a piece; `errors` says how a device hands on an error's body: chunk, data.
 * Prints a JSON list with the outcome of every step.
 */
const fs = require('node:fs')
const http = require('node:http')
const path = require('node:path')

const [folder, given] = process.argv.slice(2)
const { size, errors, steps, ...options } = JSON.parse(given)

const sent = []
let whenSent = () => {}

function request({ url, method = 'GET', header = {}, data, enableChunked, timeout = 60000, success, fail }) {
  const listeners = []
  sent.push(`${method} ${new URL(url).pathname}`)
  const body = data === undefined ? undefined : JSON.stringify(data)
  const headers = { 'content-type': 'application/json', ...header }
  const call = http.request(url, { method, headers, timeout }, (response) => {
    const pieces = []
    const streamed = enableChunked && (response.statusCode === 200 || errors === 'chunk')
    response.on('data', (bytes) => {
      pieces.push(bytes)
      if (!streamed) return
      for (let i = 0; i < bytes.length; i += size) {
        const piece = new Uint8Array(bytes.subarray(i, i + size)).buffer
        for (const listener of listeners) listener({ data: piece })
      }
    })
    response.on('error', () => fail({ errMsg: 'request:fail abort' }))
    response.on('end', () => {
      let answer = streamed ? '' : Buffer.concat(pieces).toString()
      try { answer = JSON.parse(answer) } catch {}
      success({ statusCode: response.statusCode, header: response.headers, data: answer })
    })
  })
  call.on('error', () => fail({ errMsg: 'request:fail abort' }))
  call.end(body, () => { if (enableChunked) whenSent() })
  return { abort: () => { sent.push('abort'); call.destroy() }, onChunkReceived: (listener) => listeners.push(listener) }
}

async function uploadFile({ url, filePath, name, header, success, fail }) {
  const form = new FormData()
  form.append(name, new Blob([fs.readFileSync(filePath)]), path.basename(filePath))
  try {
    const answer = await fetch(url, { method: 'POST', headers: header, body: form })
    success({ statusCode: answer.status, data: await answer.text() })
  } catch (error) {
    fail({ errMsg: `uploadFile:fail ${error.message}` })
  }
}

let chosen
const toasts = []
globalThis.wx = {
  request,
  uploadFile,
  login: async () => ({ code: 'code-of-wx-login' }),
  chooseMedia: async () => ({ tempFiles: [{ tempFilePath: chosen }] }),
  showToast: ({ title }) => toasts.push(title),
}

/** The page's object, with `setData` for the paths that it uses. */
function open() {
  let page
  globalThis.Page = (made) => { page = made }
  require(path.join(folder, 'pages/chat/chat.js'))
  page.setData = (changes) => {
    for (const [key, value] of Object.entries(changes)) {
      const [, name, index] = /^(\w+)(?:\[(\d+)\])?$/.exec(key)
      if (index === undefined) page.data[name] = value
      else page.data[name][index] = value
    }
  }
  page.loaded = page.onLoad()
  return page
}

async function main() {
  const { Gateway, utf8Decoder } = require(path.join(folder, 'gateway.js'))
  const gateway = new Gateway(options)
  const page = options.page ? open() : null
  let files = []
  const actions = {
    decode(hex) { // whole, cut once at every byte, and a byte at a time
      const bytes = Uint8Array.from(Buffer.from(hex, 'hex'))
      const ways = [[bytes], [...bytes].map((byte) => Uint8Array.of(byte))]
      for (let i = 0; i <= bytes.length; i += 1) ways.push([bytes.slice(0, i), bytes.slice(i)])
      return ways.map((pieces) => {
        const decode = utf8Decoder()
        return pieces.map((piece) => decode(piece.buffer)).join('')
      })
    },
    async ask(query, { stopAt } = {}) {
      const texts = []
      const answer = gateway.ask(query, { files, onText: (text) => {
        texts.push(text)
        if (stopAt === 'text') answer.stop()
      } })
      if (stopAt === 'start') answer.stop()
      whenSent = () => { if (stopAt === 'sent') answer.stop() }
      const done = await answer.done.catch((error) => error.message)
      return { text: texts.join(''), pieces: texts.length, done }
    },
    async upload(file) {
      const uploaded = await gateway.upload(file).catch((error) => error.message)
      files = typeof uploaded === 'string' ? [] : [uploaded]
      return uploaded
    },
    sent: () => sent,
    async conversations(before) {
      return gateway.conversations(before).catch((error) => error.message)
    },
    async open(index, before) { // the conversation at that place of the list
      const { conversations } = await gateway.conversations()
      return gateway.open(conversations[index].id, before).catch((error) => error.message)
    },
    async rate(index, rating) { // the turn at that place of the latest conversation
      const { conversations } = await gateway.conversations()
      const { messages } = await gateway.open(conversations[0].id)
      return gateway.rate(messages[index].id, rating).catch((error) => error.message)
    },
    async tap(name, dataset) {
      await page.loaded
      await page[name]({ currentTarget: { dataset } })
      return { ...page.data, toasts: [...toasts], messages: [...page.data.messages] }
    },
    async first(name) { // a tap on the first conversation of the list
      await page.loaded
      return actions.tap(name, { id: page.data.conversations[0].id })
    },
    async send(query, { file } = {}) {
      if (file) {
        chosen = file
        await page.attach()
      }
      page.onInput({ detail: { value: query } })
      await page.send()
      return { ...page.data, toasts: [...toasts], messages: [...page.data.messages] }
    },
  }
  const outcomes = []
  for (const [action, ...rest] of steps) outcomes.push(await actions[action](...rest))
  console.log(JSON.stringify(outcomes))
}

main()
