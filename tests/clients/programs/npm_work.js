// Puts, and a watch of them, by npm's etcd3 until the input ends; JSON lines as those of the program on Go's clientv3.
//
// By default the library repeats a call, writes included, whatever has become of it: its option says not to. A watch
// goes on by itself.
const { Etcd3 } = require('etcd3');

const [endpoints, prefix] = process.argv.slice(2);
const say = (what) => console.log(JSON.stringify(what));
const pause = (ms) => new Promise((done) => setTimeout(done, ms));
const once = { execute: (call) => call({ attempt: 0, signal: new AbortController().signal }) };

async function main() {
  const client = new Etcd3({
    hosts: endpoints.split(',').map((each) => `http://${each}`),
    faultHandling: { global: once },
    defaultCallOptions: (context) => (context.isStream ? {} : { deadline: Date.now() + 10000 }),
  });
  const put = async (key, value) => {
    try {
      return { revision: Number((await client.put(key).value(value)).header.revision) };
    } catch (error) {
      await pause(20);
      return { error: `${error.constructor.name}: ${error.message}` };
    }
  };
  const putForSure = async (key) => {
    for (;;) {
      const done = await put(key, '');
      if (!done.error) return done.revision;
    }
  };

  const begun = await putForSure(`${prefix}begin`);
  say({ kind: 'begin', revision: begun });
  let seenEnd;
  const end = new Promise((done) => (seenEnd = done));
  const watcher = client.watch().prefix(prefix).startRevision(`${begun + 1}`).watcher();
  watcher.on('put', (kv) => {
    say({ kind: 'event', key: `${kv.key}`, value: `${kv.value}`, revision: Number(kv.mod_revision) });
    if (`${kv.key}` === `${prefix}end`) seenEnd();
  });
  watcher.on('disconnected', (error) => say({ kind: 'watch ended', error: `${error}` }));

  let over = false;
  process.stdin.once('data', () => (over = true));
  for (let number = 0; !over; number++) {
    const [key, value] = [`${prefix}${number % 5}`, `${number}`];
    say({ kind: 'put', key, value, ...(await put(key, value)) });
    await pause(5);
  }
  await putForSure(`${prefix}end`);
  await end;
}

main().then(
  () => process.exit(0),
  (error) => {
    console.error(error);
    process.exit(1);
  },
);
