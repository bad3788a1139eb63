// usage: ws_direct.js URL [4|6]: ws as Slack's Bolt 4 and discord.js use it, without an agent.
const WebSocket = require("ws");

const [url, family] = process.argv.slice(2);
const socket = new WebSocket(url, { family: Number(family ?? 0) });
socket.on("open", () => socket.send("hello from a websocket"));
socket.on("message", (data) => {
  console.log(String(data));
  socket.close();
});
socket.on("error", (error) => {
  for (const cause of error.errors ?? [error]) console.error(cause.message);
  process.exitCode = 1;
});
