const { Gateway } = require('../../gateway')

// Both hosts must be among the mini-program's server domains (mp.weixin.qq.com, 开发管理).
const options = { gateway: 'https://gateway.example.com', agent: 'dify', tokens: 'https://www.example.com/token' }

Page({
  data: { conversations: [], messages: [], query: '', file: null, busy: false },

  onLoad() {
    this.gateway = new Gateway(options)
    return this.list()
  },

  async list() {
    try {
      this.setData(await this.gateway.conversations())
    } catch {
      this.setData({ conversations: [] }) // a gateway without a database has none
    }
  },

  async open({ currentTarget }) {
    if (this.data.busy) return
    try {
      const { messages } = await this.gateway.open(currentTarget.dataset.id)
      this.setData({ messages: messages.flatMap(({ id, question, answer, feedback }) => [
        { role: 'user', text: question },
        { role: 'assistant', text: answer, id, rating: feedback && feedback.rating },
      ]) })
    } catch (error) {
      wx.showToast({ title: error.message, icon: 'none' })
    }
  },

  begin() {
    if (this.data.busy) return
    this.gateway.conversation = undefined
    this.setData({ messages: [] })
  },

  async rate({ currentTarget }) {
    const { index, value } = currentTarget.dataset
    const message = this.data.messages[index]
    const rating = message.rating === value ? null : value
    try {
      await this.gateway.rate(message.id, rating)
      this.setData({ [`messages[${index}]`]: { ...message, rating } })
    } catch (error) {
      wx.showToast({ title: error.message, icon: 'none' })
    }
  },

  onUnload() {
    this.stop()
  },

  onInput({ detail }) {
    this.setData({ query: detail.value })
  },

  async send() {
    const { messages, query, file, busy } = this.data
    if (busy || !query) return
    let text = ''
    const at = messages.length + 1
    const show = (role) => this.setData({ [`messages[${at}]`]: { role, text } })
    this.setData({ query: '', file: null, busy: true, [`messages[${at - 1}]`]: { role: 'user', text: query } })
    this.running = this.gateway.ask(query, {
      files: file ? [file] : [],
      onText: (more) => { text += more; show('assistant') },
    })
    try {
      await this.running.done
      const { notes } = this.running
      if (notes) this.setData({ [`messages[${at}]`]: { role: 'assistant', text, id: notes.message_id } })
    } catch (error) {
      text = `${text}\n${error.message}`.trim()
      show('error')
    }
    this.setData({ busy: false })
    await this.list()
  },

  stop() {
    if (this.running) this.running.stop()
  },

  async attach() {
    try {
      const { tempFiles } = await wx.chooseMedia({ count: 1, mediaType: ['image'] })
      this.setData({ file: await this.gateway.upload(tempFiles[0].tempFilePath) })
    } catch (error) {
      wx.showToast({ title: error.message || error.errMsg, icon: 'none' })
    }
  },
})
