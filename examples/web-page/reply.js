import { button, make } from './elements.js'

/** A form for what the bot waits for; `send` gets the reply for `Chat.reply`. */
export function replyForm(waitsFor, send) {
  const { fields, actions } = read(waitsFor)
  const inputs = () => Object.fromEntries(fields.map(({ name }, i) => [name, boxes[i].value]))
  const boxes = fields.map(({ type }) => make(type === 'paragraph' ? 'textarea' : 'input', { rows: 3 }))
  const labels = fields.map(({ label }, i) => make('label', {}, label, boxes[i]))
  const buttons = actions.map(({ id, title }) => button(title || id, () => send({ action: id, inputs: inputs() })))
  if (fields.length && !buttons.length) buttons.push(button('Send', () => send({ inputs: inputs() })))
  return make('fieldset', {}, make('legend', {}, 'The bot waits for your answer.'), ...labels, ...buttons)
}

/** {fields, actions} of the forms and choices of each platform. Others are answered with a message. */
function read({ forms, params, inputs }) {
  if (forms?.length) { // Dify
    const fields = forms[0].inputs.map(({ output_variable_name: name, type }) => ({ name, label: name, type }))
    return { fields, actions: forms[0].actions }
  }
  if (params) { // FastGPT
    const fields = (params.inputForm ?? []).map(({ key, label }) => ({ name: key, label }))
    const actions = (params.userSelectOptions ?? params.options ?? []).map((one) => ({ id: one.value ?? one }))
    return { fields, actions }
  }
  const fields = Object.entries(inputs ?? {}) // RAGFlow
  return { fields: fields.map(([name, { name: label }]) => ({ name, label: label || name })), actions: [] }
}
