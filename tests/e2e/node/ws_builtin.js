// usage: ws_builtin.js URL: the WebSocket of Node 22 and later.
const socket = new WebSocket(process.argv[2]);
socket.addEventListener("open", () => socket.send("hello from a websocket"));
socket.addEventListener("message", (event) => {
  console.log(event.data);
  socket.close();
});
// It says no more of a failure than this.
socket.addEventListener("close", ({ code }) => {
  console.error(`closed ${code}`);
  if (code === 1006) process.exitCode = 1;
});
