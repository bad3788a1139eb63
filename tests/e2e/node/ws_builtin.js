// usage: ws_builtin.js URL: the WebSocket of Node 22 and later.
const socket = new WebSocket(process.argv[2]);
socket.addEventListener("open", () => socket.send("hello from a websocket"));
socket.addEventListener("message", (event) => {
  console.log(event.data);
  socket.close();
});
socket.addEventListener("error", (event) => {
  console.error(event.message);
  process.exitCode = 1;
});
