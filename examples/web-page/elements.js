/** An element with texts and elements in it. Texts stay texts, so no answer can become markup. */
export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties)
  element.append(...children)
  return element
}

export function button(text, work, properties = {}) {
  return make('button', { type: 'button', onclick: single(work), ...properties }, text)
}

/** A listener for which a second click does nothing until the first is done. */
export function single(work) {
  let isRunning = false
  return async () => {
    if (isRunning) return
    isRunning = true
    await work()
    isRunning = false
  }
}

/** A link that opens in a new tab; only the text if the address is not of the web. */
export function link(url, text) {
  if (!/^https?:\/\//i.test(url ?? '')) return text
  return make('a', { href: url, target: '_blank', rel: 'noopener noreferrer' }, text || url)
}
