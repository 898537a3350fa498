// What two programs on clientv3 ask for, call by call: the storage of Kubernetes' API server (its package
// storage/etcd3), and confd's backend. Neither program is in a package index that tests may use.
package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/clientv3"
)

const (
	registry   = "/registry/"
	compactKey = "compact_rev_key"
)

func kubernetes(client *clientv3.Client) {
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Second)
	defer cancel()
	status, err := client.Status(ctx, client.Endpoints()[0]) // which features it has goes by its version
	must(err)
	fmt.Println("version", strings.Join(strings.Split(status.Version, ".")[:2], "."))
	_, err = client.Get(ctx, registry+"health")
	must(err)
	pods, first := registry+"pods/", create(ctx, client, registry+"pods/default/p0", "v")
	for n := 1; n < 8; n++ {
		create(ctx, client, fmt.Sprintf("%sdefault/p%d", pods, n), "v")
	}
	fmt.Println("created again", create(ctx, client, pods+"default/p0", "other"))
	changed := update(ctx, client, pods+"default/p3", first+3, "w")
	fmt.Println("updated again", update(ctx, client, pods+"default/p3", first+3, "x"))
	fmt.Println("updated", update(ctx, client, pods+"default/p3", changed, "x")-first)

	list(ctx, client, pods, first)
	events := follow(ctx, client, pods, first)
	leases(ctx, client)
	contended(ctx, client)
	compacted(ctx, client, pods, first)
	must(events.Close())
}

// A key that must not be there; the revision, or 0.
func create(ctx context.Context, client *clientv3.Client, key, value string, options ...clientv3.OpOption) int64 {
	txn, err := client.Txn(ctx).
		If(clientv3.Compare(clientv3.ModRevision(key), "=", 0)).
		Then(clientv3.OpPut(key, value, options...)).Commit()
	must(err)
	if !txn.Succeeded {
		return 0
	}
	return txn.Header.Revision
}

// A key that must not have changed; the revision, or 0, with what is there said.
func update(ctx context.Context, client *clientv3.Client, key string, known int64, value string) int64 {
	txn, err := client.Txn(ctx).
		If(clientv3.Compare(clientv3.ModRevision(key), "=", known)).
		Then(clientv3.OpPut(key, value)).
		Else(clientv3.OpGet(key)).Commit()
	must(err)
	if !txn.Succeeded {
		fmt.Println("there is", keys((*clientv3.GetResponse)(txn.Responses[0].GetResponseRange())))
		return 0
	}
	return txn.Header.Revision
}

// Pages of one revision, though keys change meanwhile; a count; a revision that does not come.
func list(ctx context.Context, client *clientv3.Client, prefix string, first int64) {
	end, from, at := clientv3.GetPrefixRangeEnd(prefix), prefix, int64(0)
	for more := true; more; {
		options := []clientv3.OpOption{clientv3.WithRange(end), clientv3.WithLimit(3)}
		if at != 0 {
			options = append(options, clientv3.WithRev(at))
		}
		page, err := client.KV.Get(ctx, from, options...)
		must(err)
		fmt.Println("page", page.Header.Revision-first, page.Count, page.More, keys(page))
		if at == 0 {
			at = page.Header.Revision
		}
		more, from = page.More, string(page.Kvs[len(page.Kvs)-1].Key)+"\x00"
		create(ctx, client, fmt.Sprintf("%sdefault/late%d", prefix, page.Header.Revision-first), "v")
	}
	count, err := client.KV.Get(ctx, prefix, clientv3.WithRange(end), clientv3.WithCountOnly())
	must(err)
	fmt.Println("count", count.Count, len(count.Kvs))
	_, err = client.KV.Get(ctx, prefix, clientv3.WithRange(end), clientv3.WithRev(first+999))
	fmt.Printf("too early %T %v\n", err, err)
}

// All events since a list, with what they replaced; then progress; then the same again from the middle, by another
// client, as after a restart. Returns that client.
func follow(ctx context.Context, client *clientv3.Client, prefix string, first int64) *clientv3.Client {
	watching := clientv3.WithRequireLeader(ctx)
	options := []clientv3.OpOption{clientv3.WithPrefix(), clientv3.WithPrevKV(), clientv3.WithProgressNotify()}
	events := client.Watch(watching, prefix, append(options, clientv3.WithRev(first+1))...)
	for _, name := range []string{"p0", "p1"} {
		got, err := client.Get(ctx, prefix+"default/"+name)
		must(err)
		gone, err := client.Txn(ctx).
			If(clientv3.Compare(clientv3.ModRevision(prefix+"default/"+name), "=", got.Kvs[0].ModRevision)).
			Then(clientv3.OpDelete(prefix + "default/" + name)).
			Else(clientv3.OpGet(prefix + "default/" + name)).Commit()
		must(err)
		fmt.Println("deleted", gone.Succeeded, gone.Header.Revision-first)
	}
	last := say(events, first, prefix+"default/p1")
	for told := false; !told; { // a server may miss one that is asked for while it catches up
		must(client.RequestProgress(watching))
		select {
		case response := <-events:
			told = response.IsProgressNotify()
			fmt.Println("progress", response.Header.Revision-first)
		case <-time.After(2 * time.Second):
		}
	}
	again, err := clientv3.New(clientv3.Config{Endpoints: client.Endpoints(), DialTimeout: 30 * time.Second})
	must(err)
	say(again.Watch(watching, prefix, append(options, clientv3.WithRev(last-2))...), first, prefix+"default/p1")
	return again
}

// Says all events up to the deletion of a key; the revision of the last.
func say(events clientv3.WatchChan, first int64, end string) (last int64) {
	for response := range events {
		must(response.Err())
		for _, event := range response.Events {
			previous := "-"
			if event.PrevKv != nil {
				previous = string(event.PrevKv.Value)
			}
			last = event.Kv.ModRevision
			fmt.Println("event", event.Type, string(event.Kv.Key), event.IsCreate(), last-first, previous)
			if event.Type == clientv3.EventTypeDelete && string(event.Kv.Key) == end {
				return last
			}
		}
	}
	panic("the watch ended")
}

// One lease serves many objects that are to go at about the same time.
func leases(ctx context.Context, client *clientv3.Client) {
	lease, err := client.Grant(ctx, 3600)
	must(err)
	for n := 0; n < 3; n++ {
		create(ctx, client, fmt.Sprintf("%sevents/e%d", registry, n), "v", clientv3.WithLease(lease.ID))
	}
	left, err := client.TimeToLive(ctx, lease.ID, clientv3.WithAttachedKeys())
	must(err)
	fmt.Printf("lease %d %s\n", left.GrantedTTL, left.Keys)
	_, err = client.Revoke(ctx, lease.ID)
	must(err)
	got, err := client.Get(ctx, registry+"events/", clientv3.WithPrefix())
	must(err)
	fmt.Println("events", got.Count)
}

// Several servers change one object, each on top of what it has read.
func contended(ctx context.Context, client *clientv3.Client) {
	key := registry + "leases/node"
	create(ctx, client, key, "0")
	var group sync.WaitGroup
	for server := 0; server < 4; server++ {
		group.Add(1)
		go func() {
			defer group.Done()
			for done := 0; done < 10; {
				got, err := client.Get(ctx, key)
				must(err)
				number, err := strconv.Atoi(string(got.Kvs[0].Value))
				must(err)
				txn, err := client.Txn(ctx).
					If(clientv3.Compare(clientv3.ModRevision(key), "=", got.Kvs[0].ModRevision)).
					Then(clientv3.OpPut(key, strconv.Itoa(number+1))).
					Else(clientv3.OpGet(key)).Commit()
				must(err)
				if txn.Succeeded {
					done++
				}
			}
		}()
	}
	group.Wait()
	got, err := client.Get(ctx, key)
	must(err)
	fmt.Println("contended", keys(got))
}

// Servers agree by a key on who compacts, and to which revision; the others are told.
func compacted(ctx context.Context, client *clientv3.Client, prefix string, first int64) {
	for turn, known := range []int64{0, 0, 1} {
		txn, err := client.Txn(ctx).
			If(clientv3.Compare(clientv3.Version(compactKey), "=", known)).
			Then(clientv3.OpPut(compactKey, strconv.FormatInt(first+int64(turn), 10))).
			Else(clientv3.OpGet(compactKey)).Commit()
		must(err)
		if !txn.Succeeded {
			fmt.Println("another one compacts", txn.Responses[0].GetResponseRange().Kvs[0].Version)
			continue
		}
		_, err = client.Compact(ctx, first+4+int64(turn))
		must(err)
	}
	_, err := client.KV.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithLimit(3), clientv3.WithRev(first+3))
	fmt.Printf("continued too late %T %v\n", err, err)
	late := <-client.Watch(clientv3.WithRequireLeader(ctx), prefix, clientv3.WithPrefix(), clientv3.WithRev(first+1))
	fmt.Println("watched too late", late.Canceled, late.CompactRevision-first, late.Err())
}

// All values of many prefixes at one revision, by transactions of as many ranges as one may have; then what has
// changed since.
func confd(client *clientv3.Client) {
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Second)
	defer cancel()
	var prefixes []string
	for n := 0; n < 130; n++ {
		prefixes = append(prefixes, fmt.Sprintf("/conf/%03d", n))
		_, err := client.Put(ctx, prefixes[n]+"/value", strconv.Itoa(n))
		must(err)
	}
	at, values := int64(0), 0
	for from := 0; from < len(prefixes); from += 128 {
		var gets []clientv3.Op
		for n := from; n < len(prefixes) && n < from+128; n++ {
			gets = append(gets, clientv3.OpGet(prefixes[n], clientv3.WithPrefix(), clientv3.WithRev(at)))
		}
		txn, err := client.Txn(ctx).Then(gets...).Commit()
		must(err)
		for _, response := range txn.Responses {
			for _, kv := range response.GetResponseRange().Kvs {
				values += int(kv.Version)
			}
		}
		if at == 0 {
			at = txn.Header.Revision
		}
		_, err = client.Put(ctx, prefixes[129]+"/value", "changed meanwhile")
		must(err)
	}
	fmt.Println("values", values)
	watching, end := context.WithCancel(ctx)
	defer end()
	events := client.Watch(watching, "/conf/", clientv3.WithPrefix(), clientv3.WithRev(at+1), clientv3.WithCreatedNotify())
	fmt.Println("created", (<-events).Created)
	_, err := client.Delete(ctx, "/conf/000", clientv3.WithPrefix())
	must(err)
	for seen := 0; seen < 3; {
		for _, event := range (<-events).Events {
			fmt.Println("event", event.Type, string(event.Kv.Key), string(event.Kv.Value), event.Kv.ModRevision-at)
			seen++
		}
	}
}
