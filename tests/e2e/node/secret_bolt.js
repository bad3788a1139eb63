// usage: secret_bolt.js bolt4|bolt5: a Socket Mode app as its manual writes it, tokens from the
// environment. After its third event it says so and waits for a line; then it posts and stops.
const { App, LogLevel } = require(process.argv[2]);

const app = new App({
  token: process.env.SLACK_BOT_TOKEN,
  appToken: process.env.SLACK_APP_TOKEN,
  socketMode: true,
  logLevel: LogLevel.WARN,
});

console.log(`tokens ${process.env.SLACK_BOT_TOKEN} ${process.env.SLACK_APP_TOKEN}`);
let heard = 0;
app.message(async ({ message }) => {
  console.log(`heard ${message.text}`);
  heard += 1;
  if (heard === 3) console.log("search me");
});
process.stdin.once("data", async () => {
  const posted = await app.client.chat.postMessage({
    channel: "C0LAB",
    text: `my token is ${process.env.SLACK_BOT_TOKEN}`,
  });
  console.log(`posted ${posted.ok}`);
  await app.stop();
  process.exit(0);
});
app.start().catch((error) => {
  for (let cause = error; cause; cause = cause.cause ?? cause.original) console.error(cause.message);
  process.exit(1);
});
