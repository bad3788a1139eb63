// A client of http2_server.js that ignores proxies: http2_client.js AUTHORITY ADDRESS PORT ROOTS.
const assert = require('node:assert')
const { readFileSync } = require('node:fs')
const http2 = require('node:http2')
const tls = require('node:tls')

const [authority, host, port, roots] = process.argv.slice(2)
const connect = () => http2.connect(`https://${authority}`, {
  createConnection: () => tls.connect({
    host, port: Number(port), servername: authority.split(':')[0], ALPNProtocols: ['h2'], ca: readFileSync(roots)
  })
})
const ask = (session, headers, content) => new Promise((resolve, reject) => {
  const stream = session.request(headers)
  const parts = []
  let status, trailers
  stream.on('response', (head) => { status = head[':status'] })
  stream.on('trailers', (head) => { trailers = head })
  stream.on('data', (data) => parts.push(data))
  stream.on('end', () => resolve({ status, trailers, body: Buffer.concat(parts) }))
  stream.on('error', reject)
  stream.end(content)
})

async function main () {
  const session = connect()
  const many = await Promise.all(Array.from({ length: 100 }, (_, n) => ask(session, { ':path': `/n/${n}` })))
  many.forEach(({ body }, n) => assert.equal(body.toString(), `/n/${n}`))
  assert.equal((await ask(session, { ':path': '/large' })).body.length, 10 << 20)
  const sent = await ask(session, { ':path': '/size', ':method': 'POST' }, Buffer.alloc(10 << 20))
  assert.equal(sent.body.toString(), String(10 << 20))
  assert.equal((await ask(session, { ':path': '/trailers' })).trailers.checksum, 'abc')
  assert.equal((await ask(session, { ':path': '/n/1', ':authority': 'evil.test' })).status, 421)
  const refused = await ask(session, { ':path': '/secret/1' })
  assert.equal(refused.status, 403)
  assert.match(refused.body.toString(), /netns-runtime refused this request by policy/)
  await new Promise((resolve, reject) => session.ping((error) => error ? reject(error) : resolve()))
  const going = new Promise((resolve) => session.once('goaway', (code) => resolve(code)))
  const late = ask(session, { ':path': '/goaway' })
  // Node 18 ends its own streams when a server goes away, whoever is between them.
  if (Number(process.versions.node.split('.')[0]) < 20) await assert.rejects(late)
  else assert.equal((await late).body.toString(), 'late')
  assert.equal(await going, 0)
  const again = connect()
  assert.equal((await ask(again, { ':path': '/n/2' })).body.toString(), '/n/2')
  again.close()
  console.log('OK')
}
main().catch((error) => { console.error(error); process.exit(1) })
