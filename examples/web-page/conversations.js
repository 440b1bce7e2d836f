import { Chat } from './chat.js'
import { button, make } from './elements.js'

/** The list of the user's conversations with the agent, in `place`; a gateway without a database has none. */
export class Conversations {
  #next = null
  #open = null

  /** `choose(id)` opens a conversation, null a new one; `attempt(work)` tells the user of an error. */
  constructor(place, gateway, choose, attempt) {
    Object.assign(this, { place, gateway, choose, attempt })
    this.list = make('ul')
    this.more = button('More', () => attempt(() => this.#load(this.#next)), { name: 'more', hidden: true })
    place.append(this.list, this.more)
  }

  /** Shows the latest page; `open` is the id of the conversation that is open. */
  async show(open) {
    this.#open = open
    await this.attempt(() => this.#load())
  }

  async #load(before) {
    const query = new URLSearchParams({ agent: this.gateway.agent, ...(before && { before }) })
    let page
    try {
      page = await this.gateway.call('GET', `/conversations?${query}`)
    } catch (error) {
      if (error.status !== 404) throw error
      return
    }
    if (!before) this.list.replaceChildren()
    this.list.append(...page.conversations.map((one) => this.#item(one)))
    this.#next = page.next
    this.more.hidden = !page.next
    this.place.hidden = false
  }

  #item({ id, title }) {
    const chat = new Chat(this.gateway, id)
    const name = title || 'Untitled'
    const rename = async () => {
      const wanted = prompt('Title', title)?.trim()
      if (wanted && await this.attempt(() => chat.rename(wanted))) await this.show(this.#open)
    }
    const remove = async () => {
      if (!confirm(`Delete “${name}”?`) || !await this.attempt(() => chat.delete())) return
      if (id === this.#open) this.choose(null)
      else await this.show(this.#open)
    }
    return make('li', {},
      button(name, () => this.choose(id), { className: 'title', ariaCurrent: String(id === this.#open) }),
      button('✎', rename, { title: 'Rename', ariaLabel: `Rename “${name}”` }),
      button('✕', remove, { title: 'Delete', ariaLabel: `Delete “${name}”` }))
  }
}
