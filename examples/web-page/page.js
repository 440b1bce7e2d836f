import { Chat } from './chat.js'

const main = document.querySelector('main')
const [list, form] = main.children
let chat = new Chat(main.dataset)
let running = null

form.addEventListener('submit', async (event) => {
  event.preventDefault()
  if (running) return
  const query = form.query.value
  form.reset()
  say('user', query)
  const answer = say('assistant')
  running = new AbortController()
  const { signal } = running
  form.send.disabled = !(form.stop.disabled = false)
  try {
    for await (const text of chat.ask(query, signal)) answer.append(text)
  } catch (error) {
    if (!signal.aborted) say('error', error.message)
  }
  running = null
  form.send.disabled = !(form.stop.disabled = true)
})

form.stop.addEventListener('click', () => running?.abort())

form.again.addEventListener('click', () => {
  running?.abort()
  chat = new Chat(main.dataset)
  list.replaceChildren()
})

/** A new line of the chat. Texts are appended as text, so no answer can become markup. */
function say(who, text = '') {
  const line = document.createElement('li')
  line.className = who
  line.append(text)
  list.append(line)
  return line
}
