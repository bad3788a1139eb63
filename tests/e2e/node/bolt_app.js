// usage: bolt_app.js bolt4|bolt5 NAME [by-proxy]: a Socket Mode app that says what it hears and ends
// after its third event. by-proxy: told of the proxy in the way that its version documents.
const [version, name, way] = process.argv.slice(2);
const { App, LogLevel, SocketModeReceiver } = require(version);

const clientOptions = { slackApiUrl: "https://slack.test/api/" };
const byProxy = {};
if (way === "by-proxy" && version === "bolt4") {
  const { HttpsProxyAgent } = require("https-proxy-agent");
  clientOptions.agent = new HttpsProxyAgent(process.env.https_proxy);
} else if (way === "by-proxy") {
  const own = require.resolve("undici", { paths: [require.resolve(version)] });
  const { ProxyAgent, fetch } = require(own);
  byProxy.dispatcher = new ProxyAgent(process.env.https_proxy);
  clientOptions.fetch = (url, init) => fetch(url, { ...init, ...byProxy });
}

const appToken = `xapp-${name}`;
const app = new App({
  token: `xoxb-${name}`,
  receiver: new SocketModeReceiver({ appToken, ...byProxy, installerOptions: { clientOptions } }),
  clientOptions,
  logLevel: LogLevel.WARN,
});

console.log(`https_proxy=${process.env.https_proxy}`);
let heard = 0;
app.message(async ({ message }) => {
  console.log(`heard ${message.text}`);
  heard += 1;
  if (heard === 3) {
    await app.stop();
    console.log("stopped");
    process.exit(0);
  }
});
app.start().then(
  () => console.log("started"),
  (error) => {
    for (let cause = error; cause; cause = cause.cause ?? cause.original) console.error(cause.message);
    process.exit(1);
  },
);
