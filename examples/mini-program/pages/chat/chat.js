const { Gateway } = require('../../gateway')

// Both hosts must be among the mini-program's server domains (mp.weixin.qq.com, 开发管理).
const options = { gateway: 'https://gateway.example.com', agent: 'dify', tokens: 'https://www.example.com/token' }

Page({
  data: { messages: [], query: '', file: null, busy: false },

  onLoad() {
    this.gateway = new Gateway(options)
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
    } catch (error) {
      text = `${text}\n${error.message}`.trim()
      show('error')
    }
    this.setData({ busy: false })
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
