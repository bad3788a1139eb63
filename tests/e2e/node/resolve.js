// usage: resolve.js HOST: what c-ares (dns.resolve) and the system (dns.lookup) say, as JSON.
const { promises: dns } = require("dns");

const host = process.argv[2];
const answers = {
  resolve4: dns.resolve4(host),
  resolve6: dns.resolve6(host),
  lookup: dns.lookup(host, { all: true }).then((all) => all.map(({ address }) => address)),
  resolveMx: dns.resolveMx(host),
};
Promise.allSettled(Object.values(answers)).then((settled) => {
  const names = Object.keys(answers);
  const told = settled.map(({ value, reason }, i) => [names[i], value ?? reason.code]);
  console.log(JSON.stringify(Object.fromEntries(told)));
});
