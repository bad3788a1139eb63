// A bot as discord.js's manual writes it, its token from the environment. It says what happens, and
// waits for a line before it goes.
const { Client, Events, GatewayIntentBits } = require("discord.js");

const client = new Client({ intents: [GatewayIntentBits.Guilds] });
console.log(`token ${process.env.DISCORD_BOT_TOKEN}`);
client.once(Events.ClientReady, (ready) => console.log(`ready as ${ready.user.username}`));
client.on(Events.ShardResume, () => console.log("resumed"));
client.on(Events.ShardDisconnect, (event) => {
  console.error(`disconnected ${event.code}`);
  process.exit(1);
});
client.on(Events.ShardError, (error) => console.error(error.message));
client.on(Events.Error, (error) => console.error(error.message));
client.on(Events.Raw, async (packet) => {
  if (packet.t !== "LAB_GOODBYE") return;
  console.log("search me");
  process.stdin.once("data", async () => {
    const body = { content: `my token is ${process.env.DISCORD_BOT_TOKEN}` };
    const posted = await client.rest.post("/channels/1/messages", { body });
    console.log(`posted ${posted.content}`);
    await client.destroy();
    process.exit(0);
  });
});
client.login(process.env.DISCORD_BOT_TOKEN).catch((error) => {
  for (let cause = error; cause; cause = cause.cause) console.error(cause.message);
  process.exit(1);
});
