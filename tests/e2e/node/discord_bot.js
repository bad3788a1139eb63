// usage: discord_bot.js TOKEN: a bot that says what happens to it and ends when the lab says goodbye.
const { Client, Events, GatewayIntentBits } = require("discord.js");

const client = new Client({
  intents: [GatewayIntentBits.Guilds],
  rest: { api: "https://discord.test/api", timeout: 5000, retries: 0 },
});
client.once(Events.ClientReady, (ready) => console.log(`ready as ${ready.user.username}`));
client.on(Events.ShardResume, () => console.log("resumed"));
client.on(Events.ShardError, (error) => console.error(error.message));
client.on(Events.Error, (error) => console.error(error.message));
client.on(Events.Raw, async (packet) => {
  if (packet.t !== "LAB_GOODBYE") return;
  const me = await client.rest.get("/users/@me");
  console.log(`goodbye ${me.username}`);
  await client.destroy();
});
client.login(process.argv[2]).catch((error) => {
  for (let cause = error; cause; cause = cause.cause) console.error(cause.message);
  process.exit(1);
});
