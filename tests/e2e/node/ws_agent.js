const { HttpsProxyAgent } = require("https-proxy-agent");
const WebSocket = require("ws");

const socket = new WebSocket(process.argv[2], { agent: new HttpsProxyAgent(process.env.https_proxy) });
socket.on("open", () => socket.send("hello from a websocket"));
socket.on("message", (data) => {
  console.log(String(data));
  socket.close();
});
socket.on("error", (error) => {
  console.error(error.message);
  process.exitCode = 1;
});
