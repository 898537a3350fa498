// What npm's etcd3 can be asked, against the endpoint named on the command line; a line for each answer.
const { Etcd3 } = require('etcd3');

const say = (what, ...values) => console.log(what, JSON.stringify(values));
const attempt = async (what, call) => {
  try {
    say(what, await call());
  } catch (error) {
    say(what, error.constructor.name, error.message);
  }
};
const pause = (ms) => new Promise((done) => setTimeout(done, ms));

async function main() {
  const client = new Etcd3({ hosts: `http://${process.argv[2]}` });
  say('put', (await client.put('a').value('1')).header.revision);
  say('get', await client.get('a').string(), await client.get('nothing').string());
  say('exec', (await client.get('a').exec()).kvs.map((kv) => [kv.key, kv.value, kv.create_revision, kv.version]));
  await Promise.all([...Array(100).keys()].map((n) => client.put(`many/${String(n).padStart(3, '0')}`).value(`${n}`)));
  say('keys', (await client.getAll().prefix('many/').keys()).length);
  say('sorted', await client.getAll().prefix('many/').sort('Value', 'Descend').limit(5).strings());
  say('count', await client.getAll().prefix('many/').count());
  say('delete', (await client.delete().prefix('many/01')).deleted, (await client.delete().key('nothing')).deleted);
  for (const value of ['1', '2']) {
    const done = await client
      .if('a', 'Value', '==', value)
      .and('a', 'Version', '>', 0)
      .then(client.put('a').value('5'), client.get('a'))
      .else(client.get('a'))
      .commit();
    say('txn', done.succeeded, done.responses.length);
  }
  await attempt('empty key', () => client.put('').value('x').exec());
  await attempt('future', () => client.get('a').revision('9999').exec());
  const stm = await client.stm().transact(async (tx) => {
    const value = Number(await tx.get('a').string());
    await tx.put('a').value(`${value + 1}`);
    return value;
  });
  say('stm', stm, await client.get('a').string());

  const spaced = client.namespace('space/');
  await spaced.put('x').value('y');
  say('namespace', await spaced.get('x').string(), await client.get('space/x').string());

  const lease = client.lease(20, { autoKeepAlive: false });
  await lease.put('leased').value('x');
  const id = await lease.grant();
  const alive = await lease.keepaliveOnce();
  say('lease', alive.TTL, id === alive.ID, await client.get('leased').string());
  await lease.revoke();
  say('revoked', await client.get('leased').string());

  const start = (await client.put('w/0').value('0')).header.revision;
  const watcher = await client.watch().prefix('w/').startRevision(start).withPreviousKV().create();
  const seen = [];
  watcher.on('put', (kv, previous) => seen.push(['put', `${kv.key}`, `${kv.value}`, previous && `${previous.value}`]));
  watcher.on('delete', (kv) => seen.push(['delete', `${kv.key}`]));
  for (let n = 0; n < 20; n++) await client.put(`w/${n % 3}`).value(`${n}`);
  await client.delete().key('w/0');
  while (seen.length < 22) await pause(20);
  say('events', ...seen);
  await watcher.cancel();
  await attempt('a watch of what is compacted', async () => {
    await client.kv.compact({ revision: start });
    const late = await client.watch().key('w/0').startRevision('2').create();
    return await new Promise((done) => late.on('error', (error) => done(error.message)));
  });

  const lock = client.lock('mutex');
  await lock.ttl(20).acquire();
  await attempt('a lock that is held', () => client.lock('mutex').ttl(20).acquire());
  await lock.release();
  await attempt('a lock that was released', async () => {
    await client.lock('mutex').ttl(20).do(async () => say('held'));
  });

  const election = client.election('office', 20);
  const campaign = election.campaign('me');
  await new Promise((done, failed) => campaign.on('elected', done).on('error', failed));
  say('leader', await election.leader());
  const observer = await election.observe();
  say('observed', observer.leader());
  await campaign.resign();
  await observer.cancel();

  say('members', (await client.cluster.memberList({})).members.map((each) => each.clientURLs.length));
  say('status', (await client.maintenance.status({})).version.split('.').slice(0, 2));
  say('alarms', (await client.maintenance.alarm({ action: 'Get', alarm: 'None' })).alarms);
  client.close();
}

main().then(
  () => process.exit(0),
  (error) => {
    console.error(error);
    process.exit(1);
  },
);
