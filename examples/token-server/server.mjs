// Serves ../web-page and hands out its tokens: GATEWAY_KEY=sk-gw-… node server.mjs
import { randomUUID } from 'node:crypto'
import { readFile, readdir } from 'node:fs/promises'
import { createServer } from 'node:http'

const { GATEWAY = 'http://localhost:3000', GATEWAY_KEY, PORT = '8000' } = process.env
if (!GATEWAY_KEY) {
  console.error('Set GATEWAY_KEY to a key of the gateway: GATEWAY_KEY=sk-gw-… node server.mjs')
  process.exit(1)
}
const WISH = { agents: ['dify'], expires_in: 900, permissions: ['chat'] }
const PAGE = new URL('../web-page/', import.meta.url)
const FILES = await readdir(PAGE)
const TYPES = { html: 'text/html', css: 'text/css', js: 'text/javascript' }

/** Who asks. Take your own session's user here: a random cookie only tells browsers apart. */
function visitor(request) {
  const known = /(?:^|; )visitor=([\w-]{36})/.exec(request.headers.cookie ?? '')
  return known ? known[1] : randomUUID()
}

async function token(request, response) {
  const id = visitor(request)
  const answer = await fetch(`${GATEWAY}/api/v1/tokens`, {
    method: 'POST',
    headers: { Authorization: `Bearer ${GATEWAY_KEY}`, 'Content-Type': 'application/json' },
    body: JSON.stringify({ ...WISH, user: `visitor-${id}` }),
  })
  response.writeHead(answer.status, {
    'Content-Type': 'application/json',
    'Cache-Control': 'no-store',
    'Set-Cookie': `visitor=${id}; HttpOnly; SameSite=Lax; Path=/; Max-Age=31536000`,
  })
  response.end(await answer.text())
}

createServer(async (request, response) => {
  try {
    if (request.method === 'POST' && request.url === '/token') return await token(request, response)
    const name = request.url === '/' ? 'index.html' : request.url.slice(1)
    if (!FILES.includes(name)) return response.writeHead(404).end()
    const text = await readFile(new URL(name, PAGE))
    response.writeHead(200, { 'Content-Type': TYPES[name.split('.').pop()] }).end(text)
  } catch (error) {
    console.error(error)
    response.writeHead(502, { 'Content-Type': 'application/json' }).end('{"msg": "The gateway cannot be reached."}')
  }
}).listen(Number(PORT), '127.0.0.1', () => console.log(`The page is at http://127.0.0.1:${PORT}`))
