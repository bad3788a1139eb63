// An HTTP/2 server: http2_server.js CERTIFICATE KEY. Prints its port.
// /large: 10 MiB; /size: how much was uploaded; /trailers; /goaway: answers and goes away; else the path.
const { readFileSync } = require('node:fs')
const http2 = require('node:http2')

const [cert, key] = process.argv.slice(2, 4).map((name) => readFileSync(name))
const server = http2.createSecureServer({ cert, key })
server.on('stream', (stream, headers) => {
  const path = headers[':path']
  stream.on('error', () => {})
  if (path === '/size') {
    let size = 0
    stream.on('data', (data) => { size += data.length })
    stream.on('end', () => { stream.respond({ ':status': 200 }); stream.end(String(size)) })
    return
  }
  stream.resume()
  if (path === '/large') {
    stream.respond({ ':status': 200 })
    stream.end(Buffer.alloc(10 << 20, 'x'))
  } else if (path === '/trailers') {
    stream.respond({ ':status': 200 }, { waitForTrailers: true })
    stream.on('wantTrailers', () => stream.sendTrailers({ checksum: 'abc' }))
    stream.end('body')
  } else if (path === '/goaway') {
    stream.respond({ ':status': 200 })
    stream.session.close()
    setTimeout(() => stream.end('late'), 50)
  } else {
    stream.respond({ ':status': 200, 'content-type': 'text/plain' })
    stream.end(path)
  }
})
server.listen(0, '127.0.0.1', () => console.log(server.address().port))
