import { button, link, make } from './elements.js'

const THUMBS = [['like', 'Good answer', '👍'], ['dislike', 'Bad answer', '👎']]

/** One line of the chat. `who` is user, assistant or error. */
export function line(who, text = '') {
  return make('li', { className: who }, make('p', {}, text))
}

/** Adds text to a line. */
export function say(item, text) {
  item.firstElementChild.append(text)
}

/** Adds the files and the sources of an answer. */
export function showNotes(item, { files = [], citations = [] }) {
  if (files.length) {
    const links = files.map(({ url, name, type }) => link(url, name || type || 'File'))
    item.append(make('p', { className: 'files' }, ...links))
  }
  if (citations.length) {
    const sources = citations.map(({ title, text, url }) => make('li', {}, link(url, title), make('p', {}, text ?? '')))
    item.append(make('details', {}, make('summary', {}, `Sources (${sources.length})`), make('ol', {}, ...sources)))
  }
}

/** Adds thumbs; `rate(rating)` keeps an opinion, and null takes it back. */
export function showThumbs(item, rating, rate) {
  const thumbs = THUMBS.map(([value, label, sign]) => button(sign, async () => {
    const chosen = rating === value ? null : value
    if (!await rate(chosen)) return
    rating = chosen
    press()
  }, { value, title: label, ariaLabel: label }))
  const press = () => thumbs.forEach((thumb) => { thumb.ariaPressed = String(thumb.value === rating) })
  press()
  item.append(make('p', { className: 'thumbs' }, ...thumbs))
}
