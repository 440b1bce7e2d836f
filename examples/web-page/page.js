import { line, say, showNotes, showThumbs } from './answer.js'
import { Chat } from './chat.js'
import { Conversations } from './conversations.js'
import { button, single } from './elements.js'
import { Gateway } from './gateway.js'
import { replyForm } from './reply.js'

const main = document.querySelector('main')
const [place, older, lines, next, form] = main.children
const gateway = new Gateway(main.dataset)
const conversations = new Conversations(place, gateway, open, attempt)
let chat, before
place.open = matchMedia('(min-width: 40rem)').matches
open(null)

form.addEventListener('submit', (event) => {
  event.preventDefault()
  const query = form.query.value
  form.reset()
  if (!form.send.disabled) show(query, chat.ask(query))
})
form.stop.addEventListener('click', () => {
  form.query.focus()
  chat.stop()
})
form.again.addEventListener('click', () => open(null))
older.addEventListener('click', single(() => attempt(showOlder)))

/** Opens a conversation by its id, or a new one. */
async function open(id) {
  chat?.close()
  chat = new Chat(gateway, id)
  before = ''
  older.hidden = true
  lines.replaceChildren()
  next.replaceChildren()
  busy(false)
  form.query.focus()
  const opened = chat
  if (id) {
    await attempt(showOlder)
    const about = await attempt(() => opened.about())
    if (about?.waits_for && chat === opened) waitFor(about.waits_for)
  }
  if (chat === opened) await conversations.show(id)
}

/** Puts the page of turns before those that are shown. */
async function showOlder() {
  const opened = chat
  const page = await opened.turns(before)
  if (chat !== opened) return
  before = page.next
  older.hidden = !before
  lines.prepend(...page.messages.flatMap((turn) => {
    const question = line('user', turn.question)
    const answer = line('assistant', turn.answer)
    const from = (side) => turn.files.filter((file) => file.belongs_to === side)
    showNotes(question, { files: from('question') })
    showNotes(answer, { files: from('answer'), citations: turn.citations })
    if (turn.id) showThumbs(answer, turn.feedback?.rating, rate(opened, turn.id))
    return [question, answer, ...(turn.error ? [line('error', turn.error)] : [])]
  }))
}

/** Shows a question and its answer as it arrives. */
async function show(question, pieces) {
  const asked = chat
  const answer = line('assistant')
  lines.append(line('user', question), answer)
  next.replaceChildren()
  form.query.focus() // the button that was clicked may be gone
  busy(true)
  let notes = {}
  await attempt(async () => {
    for await (const piece of pieces) {
      if (chat !== asked) return
      say(answer, piece.text)
      notes = piece.notes ?? notes
    }
  }, asked)
  if (chat !== asked) return
  busy(false)
  showNotes(answer, notes)
  if (notes.interaction) waitFor(notes.interaction)
  await conversations.show(chat.id)
  if (place.hidden || !notes.message_id) return
  showThumbs(answer, null, rate(asked, notes.message_id))
  if (notes.interaction || notes.stopped) return
  suggest(asked, notes.suggestions ?? await asked.suggestions(notes.message_id))
}

/** Offers questions to ask next. */
function suggest(asked, questions) {
  if (chat !== asked || form.send.disabled) return
  next.replaceChildren(...questions.map((question) => button(question, () => show(question, chat.ask(question)))))
}

/** Offers what the bot waits for. */
function waitFor(waitsFor) {
  next.replaceChildren(replyForm(waitsFor, (reply) => {
    const words = [reply.action, ...Object.values(reply.inputs ?? {})]
    show(words.filter(Boolean).join('\n'), chat.reply(reply))
  }))
}

function rate(rated, message) {
  return (rating) => attempt(() => rated.rate(message, rating))
}

/** The outcome of the work; its error becomes a line of the conversation that is open. */
async function attempt(work, opened = chat) {
  try {
    return await work()
  } catch (error) {
    if (chat === opened) lines.append(line('error', error.message))
  }
}

function busy(is) {
  form.send.disabled = is
  form.stop.disabled = !is
}
