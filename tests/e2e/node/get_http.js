// usage: get_http.js URL [4|6]: Node's http and https modules.
const [url, family] = process.argv.slice(2);
const { get } = require(new URL(url).protocol.slice(0, -1));

get(url, { family: Number(family ?? 0) }, (response) => {
  response.pipe(process.stdout);
  if (response.statusCode !== 200) {
    console.error(`status ${response.statusCode}`);
    process.exitCode = 1;
  }
}).on("error", (error) => {
  for (const cause of error.errors ?? [error]) console.error(cause.message);
  process.exitCode = 1;
});
