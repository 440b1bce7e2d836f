import { useCallback, useEffect, useRef, useState } from 'react'

export interface ChatOptions {
  /** The gateway's address, such as https://gateway.example.com. */
  gateway: string
  /** The agent or route that answers. */
  agent: string
  /** Your server's address that hands out tokens; it answers as POST /api/v1/tokens does. */
  tokens: string
}

export interface Message {
  role: 'user' | 'assistant'
  text: string
}

/** `aborted` and `error` last until the next question. */
export type Status = 'idle' | 'streaming' | 'error' | 'aborted'

interface Session {
  conversation?: string
  token?: string
  refreshAt: number
}

/** A conversation with one agent of the gateway. */
export function useChat({ gateway, agent, tokens }: ChatOptions) {
  const [messages, setMessages] = useState<Message[]>([])
  const [status, setStatus] = useState<Status>('idle')
  const [error, setError] = useState<string | null>(null)
  const running = useRef<AbortController | null>(null)
  const session = useRef<Session>({ refreshAt: 0 })

  const stop = useCallback(() => running.current?.abort(), [])

  const reset = useCallback(() => {
    running.current?.abort()
    running.current = null
    session.current = { refreshAt: 0 }
    setMessages([])
    setStatus('idle')
    setError(null)
  }, [])

  const ask = useCallback(
    async (query: string) => {
      if (running.current) return
      const controller = (running.current = new AbortController())
      setMessages((before) => [...before, { role: 'user', text: query }, { role: 'assistant', text: '' }])
      setStatus('streaming')
      setError(null)
      let status: Status = 'idle'
      try {
        const options = { gateway, agent, tokens }
        for await (const text of answer(options, session.current, query, controller.signal)) {
          if (running.current !== controller) return
          setMessages((before) => {
            const last = before[before.length - 1]
            return [...before.slice(0, -1), { ...last, text: last.text + text }]
          })
        }
      } catch (problem) {
        status = controller.signal.aborted ? 'aborted' : 'error'
        if (status === 'error' && running.current === controller) setError((problem as Error).message)
      }
      if (running.current !== controller) return // reset or unmounted meanwhile
      running.current = null
      setStatus(status)
    },
    [gateway, agent, tokens],
  )

  // A new address or agent is a new conversation; an unmounted component asks nothing more.
  useEffect(() => reset, [gateway, agent, tokens, reset])

  return { messages, status, error, ask, stop, reset }
}

async function* answer(options: ChatOptions, session: Session, query: string, signal: AbortSignal) {
  let response = await post(options, session, query, signal)
  if (response.status === 401) { // the token or its key has ended: try a new token once
    session.refreshAt = 0
    response = await post(options, session, query, signal)
  }
  if (!response.ok || !response.body) throw new Error(await sentence(response))
  for await (const data of events(response.body)) {
    if (data === '[DONE]') return
    const chunk = JSON.parse(data)
    if (chunk.error) throw new Error(chunk.error.message)
    session.conversation = chunk.id
    yield (chunk.choices[0]?.delta.content ?? '') as string
  }
  throw new Error('The connection ended before the answer did.')
}

async function post({ gateway, agent, tokens }: ChatOptions, session: Session, query: string, signal: AbortSignal) {
  if (Date.now() >= session.refreshAt) {
    const response = await fetch(tokens, { method: 'POST', signal })
    if (!response.ok) throw new Error(await sentence(response))
    const { data } = await response.json()
    session.token = data.token
    session.refreshAt = Date.now() + (data.expires_in - 30) * 1000
  }
  return fetch(`${gateway}/api/v1/chat`, {
    method: 'POST',
    headers: {
      Authorization: `Bearer ${session.token}`,
      Agent: encodeURIComponent(agent),
      'Content-Type': 'application/json',
    },
    body: JSON.stringify({ query, stream: true, conversation_id: session.conversation }),
    signal,
  })
}

/** The gateway's own sentence about an error. */
async function sentence(response: Response): Promise<string> {
  const body = await response.json().catch(() => null)
  return body?.msg ?? `${response.status} ${response.statusText}`
}

/** The data of each event of a stream. Comments, which keep the connection alive, have none. */
async function* events(body: ReadableStream<Uint8Array<ArrayBuffer>>) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader()
  let text = ''
  for (;;) {
    const { value, done } = await reader.read()
    if (done) return
    const blocks = (text + value).split('\n\n')
    text = blocks.pop() ?? ''
    for (const block of blocks) {
      if (block.startsWith('data: ')) yield block.slice(6)
    }
  }
}
