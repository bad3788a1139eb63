const { fetch } = require("undici");

fetch(process.argv[2])
  .then(async (response) => {
    console.log(await response.text());
    if (!response.ok) throw new Error(`status ${response.status}`);
  })
  .catch((error) => {
    for (let cause = error; cause; cause = cause.cause) console.error(cause.message || cause.code);
    process.exitCode = 1;
  });
