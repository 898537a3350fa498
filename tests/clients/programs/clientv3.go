// Go's clientv3 and its packages of recipes, used as programs do.
//
//	clientv3 exercise ENDPOINTS        a line for each thing that can be asked
//	clientv3 kubernetes ENDPOINTS      the same, of what the storage of Kubernetes' API server asks for
//	clientv3 confd ENDPOINTS           the same, of confd
//	clientv3 work ENDPOINTS PREFIX     puts, and a watch of them, until the input ends; JSON lines
//	clientv3 locked ENDPOINTS PREFIX   the same, each put under one lock that all such programs want
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sort"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/clientv3"
	"go.etcd.io/etcd/clientv3/clientv3util"
	"go.etcd.io/etcd/clientv3/concurrency"
	"go.etcd.io/etcd/clientv3/leasing"
	"go.etcd.io/etcd/clientv3/mirror"
	"go.etcd.io/etcd/clientv3/namespace"
	"go.etcd.io/etcd/clientv3/ordering"
	"google.golang.org/grpc/grpclog"
)

func main() {
	grpclog.SetLoggerV2(grpclog.NewLoggerV2(io.Discard, io.Discard, io.Discard))
	client, err := clientv3.New(clientv3.Config{
		Endpoints:            strings.Split(os.Args[2], ","),
		DialTimeout:          10 * time.Second,
		DialKeepAliveTime:    10 * time.Second,
		DialKeepAliveTimeout: 5 * time.Second,
	})
	must(err)
	switch os.Args[1] {
	case "exercise":
		exercise(client)
	case "kubernetes":
		kubernetes(client)
	case "confd":
		confd(client)
	case "work":
		work(client, os.Args[3], plainly(client))
	case "locked":
		work(client, os.Args[3], locked(client, "mutex"))
	}
}

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func keys(response *clientv3.GetResponse) (found []string) {
	for _, kv := range response.Kvs {
		found = append(found, fmt.Sprintf("%s=%s@%d.%d.%d", kv.Key, kv.Value, kv.CreateRevision, kv.ModRevision, kv.Version))
	}
	return found
}

func exercise(client *clientv3.Client) {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()

	put, err := client.Put(ctx, "a", "1")
	must(err)
	fmt.Println("put", put.Header.Revision)
	put, err = client.Put(ctx, "a", "2", clientv3.WithPrevKV())
	must(err)
	fmt.Println("previous", put.PrevKv)
	var group sync.WaitGroup
	for n := 0; n < 200; n++ {
		group.Add(1)
		go func(n int) {
			defer group.Done()
			_, err := client.Put(ctx, fmt.Sprintf("many/%03d", n), "x")
			must(err)
		}(n)
	}
	group.Wait()
	for _, options := range [][]clientv3.OpOption{
		{clientv3.WithPrefix(), clientv3.WithCountOnly()},
		{clientv3.WithPrefix(), clientv3.WithLimit(3), clientv3.WithKeysOnly(), clientv3.WithSort(clientv3.SortByKey, clientv3.SortDescend)},
		{clientv3.WithRange("many/003"), clientv3.WithSerializable()},
		{clientv3.WithPrefix(), clientv3.WithMaxModRev(1)},
		{clientv3.WithPrefix(), clientv3.WithRev(2)},
	} {
		got, err := client.Get(ctx, "many/", options...)
		must(err)
		fmt.Println("get", got.Count, got.More, len(got.Kvs), got.Header.Revision)
	}
	got, err := client.Get(ctx, "a")
	must(err)
	fmt.Println("get", keys(got))
	deleted, err := client.Delete(ctx, "many/19", clientv3.WithPrefix())
	must(err)
	fmt.Println("delete", deleted.Deleted)
	txn, err := client.Txn(ctx).
		If(clientv3.Compare(clientv3.Value("a"), "=", "2"), clientv3util.KeyMissing("b"), clientv3util.KeyExists("a")).
		Then(clientv3.OpPut("b", "1"), clientv3.OpGet("b"), clientv3.OpTxn(nil, []clientv3.Op{clientv3.OpPut("c", "1")}, nil)).
		Else(clientv3.OpGet("a")).Commit()
	must(err)
	fmt.Println("txn", txn.Succeeded, len(txn.Responses))
	for _, op := range []clientv3.Op{
		clientv3.OpPut("", "x"), clientv3.OpGet("a", clientv3.WithRev(99999)), clientv3.OpPut("a", "x", clientv3.WithLease(99)),
		clientv3.OpPut("nothing", "", clientv3.WithIgnoreValue()),
	} {
		_, err = client.Do(ctx, op)
		fmt.Printf("error %T %v\n", err, err)
	}

	lease, err := client.Grant(ctx, 6)
	must(err)
	_, err = client.Put(ctx, "leased", "x", clientv3.WithLease(lease.ID))
	must(err)
	alive, err := client.KeepAlive(ctx, lease.ID)
	must(err)
	fmt.Println("kept", (<-alive).TTL)
	left, err := client.TimeToLive(ctx, lease.ID, clientv3.WithAttachedKeys())
	must(err)
	fmt.Printf("lease %d %v %s\n", left.GrantedTTL, left.TTL > 2, left.Keys)
	_, err = client.Revoke(ctx, lease.ID)
	must(err)
	for range alive {
	}
	fmt.Println("the channel of keep-alives ends")
	_, err = client.KeepAliveOnce(ctx, lease.ID)
	fmt.Println("gone", err)

	watch(ctx, client)
	recipes(ctx, client)
	wrappers(ctx, client)
	members, err := client.MemberList(ctx)
	must(err)
	fmt.Println("members", len(members.Members), len(members.Members[0].ClientURLs))
	must(client.Sync(ctx))
	fmt.Println("endpoints", len(client.Endpoints()))
	_, err = client.Compact(ctx, 100)
	must(err)
	_, err = client.Compact(ctx, 100)
	fmt.Println("compacted", err)
	late := <-client.Watch(ctx, "a", clientv3.WithRev(50))
	fmt.Println("late", late.Canceled, late.CompactRevision, late.Err())
}

func watch(ctx context.Context, client *clientv3.Client) {
	put, err := client.Put(ctx, "w/0", "0")
	must(err)
	first := put.Header.Revision
	ctx, cancel := context.WithCancel(ctx)
	events := client.Watch(ctx, "w/", clientv3.WithPrefix(), clientv3.WithRev(first), clientv3.WithPrevKV(), clientv3.WithCreatedNotify(), clientv3.WithFragment())
	fmt.Println("created", (<-events).Created)
	deletes := client.Watch(ctx, "w/", clientv3.WithPrefix(), clientv3.WithFilterPut())
	for n := 0; n < 300; n++ {
		_, err := client.Put(ctx, fmt.Sprintf("w/%d", n%7), strings.Repeat("v", n))
		must(err)
	}
	_, err = client.Delete(ctx, "w/", clientv3.WithPrefix())
	must(err)
	count := 0
	for count < 308 {
		for _, event := range (<-events).Events {
			previous := 0
			if event.PrevKv != nil {
				previous = len(event.PrevKv.Value)
			}
			fmt.Println("event", event.Type, string(event.Kv.Key), len(event.Kv.Value), event.Kv.ModRevision-first, previous)
			count++
		}
	}
	fmt.Println("deletes", len((<-deletes).Events))
	must(client.RequestProgress(ctx))
	for response := range events {
		if response.IsProgressNotify() {
			fmt.Println("progress", response.Header.Revision-first)
			break
		}
	}
	cancel()
	for range events {
	}
	fmt.Println("the channel of events ends")
}

func recipes(ctx context.Context, client *clientv3.Client) {
	one, err := concurrency.NewSession(client, concurrency.WithTTL(10))
	must(err)
	two, err := concurrency.NewSession(client, concurrency.WithTTL(10))
	must(err)
	first, second := concurrency.NewMutex(one, "mutex"), concurrency.NewMutex(two, "mutex")
	must(first.Lock(ctx))
	brief, giveUp := context.WithTimeout(ctx, 300*time.Millisecond)
	fmt.Println("held", second.Lock(brief))
	giveUp()
	waited := make(chan error)
	go func() { waited <- second.Lock(ctx) }()
	owns, err := client.Txn(ctx).If(first.IsOwner()).Commit()
	must(err)
	fmt.Println("owner", owns.Succeeded)
	must(first.Unlock(ctx))
	must(<-waited)
	must(second.Unlock(ctx))

	office, rival := concurrency.NewElection(one, "office"), concurrency.NewElection(two, "office")
	must(office.Campaign(ctx, "one"))
	observed := rival.Observe(ctx)
	go func() { waited <- rival.Campaign(ctx, "two") }()
	fmt.Println("leader", string((<-observed).Kvs[0].Value))
	must(office.Proclaim(ctx, "one again"))
	fmt.Println("leader", string((<-observed).Kvs[0].Value))
	must(office.Resign(ctx))
	must(<-waited)
	fmt.Println("leader", string((<-observed).Kvs[0].Value))
	must(one.Close())
	must(two.Close())
	_, err = rival.Leader(ctx)
	fmt.Println("leader", err)

	_, err = client.Put(ctx, "sum", "")
	must(err)
	var group sync.WaitGroup
	for n := 0; n < 10; n++ {
		group.Add(1)
		go func() {
			defer group.Done()
			_, err := concurrency.NewSTM(client, func(stm concurrency.STM) error {
				stm.Put("sum", stm.Get("sum")+"1")
				return nil
			}, concurrency.WithIsolation(concurrency.Serializable))
			must(err)
		}()
	}
	group.Wait()
	got, err := client.Get(ctx, "sum")
	must(err)
	fmt.Println("sum", string(got.Kvs[0].Value))
}

func wrappers(ctx context.Context, client *clientv3.Client) {
	spaced := namespace.NewKV(client.KV, "space/")
	_, err := spaced.Put(ctx, "x", "y")
	must(err)
	got, err := client.Get(ctx, "space/x")
	must(err)
	fmt.Println("namespace", got.Count)
	ordered := ordering.NewKV(client.KV, func(clientv3.Op, clientv3.OpResponse, int64) error { return nil })
	got, err = ordered.Get(ctx, "a")
	must(err)
	fmt.Println("ordered", got.Count)
	leased, end, err := leasing.NewKV(client, "leasing/")
	must(err)
	for n := 0; n < 2; n++ {
		_, err = leased.Put(ctx, "owned", fmt.Sprint(n))
		must(err)
		got, err = leased.Get(ctx, "owned")
		must(err)
		fmt.Println("leasing", string(got.Kvs[0].Value))
	}
	end()
	base, errors := mirror.NewSyncer(client, "many/", 0).SyncBase(ctx)
	var found []string
	for response := range base {
		for _, kv := range response.Kvs {
			found = append(found, string(kv.Key))
		}
	}
	must(<-errors)
	sort.Strings(found)
	fmt.Println("mirror", len(found), found[0])
}

// What happened, in the order of this process; the lines of puts and of events are in no order to each other.
type happened struct {
	Kind     string `json:"kind"`
	Key      string `json:"key"`
	Value    string `json:"value"`
	Revision int64  `json:"revision"`
	Error    string `json:"error"`
}

// putting makes one put.
type putting func(ctx context.Context, key, value string) (revision int64, err error)

func plainly(client *clientv3.Client) putting {
	return func(ctx context.Context, key, value string) (int64, error) {
		response, err := client.Put(ctx, key, value)
		if err != nil {
			return 0, err
		}
		return response.Header.Revision, nil
	}
}

// locked puts while it holds a lock of package concurrency, with the lock as the put's condition.
func locked(client *clientv3.Client, name string) putting {
	var session *concurrency.Session
	return func(ctx context.Context, key, value string) (int64, error) {
		if session != nil {
			select {
			case <-session.Done():
				session = nil
			default:
			}
		}
		if session == nil {
			lease, err := client.Grant(ctx, 10)
			if err != nil {
				return 0, err
			}
			if session, err = concurrency.NewSession(client, concurrency.WithLease(lease.ID)); err != nil {
				session = nil
				return 0, err
			}
		}
		mutex := concurrency.NewMutex(session, name)
		if err := mutex.Lock(ctx); err != nil {
			// Whether its key is there is unknown: the lock is given up with the lease.
			session.Orphan()
			client.Revoke(ctx, session.Lease())
			session = nil
			return 0, err
		}
		response, err := client.Txn(ctx).If(mutex.IsOwner()).Then(clientv3.OpPut(key, value)).Commit()
		if unlocked := mutex.Unlock(ctx); unlocked != nil {
			session.Orphan()
			client.Revoke(ctx, session.Lease())
			session = nil
		}
		if err != nil {
			return 0, err
		}
		if !response.Succeeded {
			return 0, errors.New("the lock was lost")
		}
		return response.Header.Revision, nil
	}
}

func work(client *clientv3.Client, prefix string, put putting) {
	var lock sync.Mutex
	out := json.NewEncoder(os.Stdout)
	say := func(what happened) {
		lock.Lock()
		defer lock.Unlock()
		must(out.Encode(what))
	}
	ctx := context.Background()
	var begun *clientv3.PutResponse
	var err error
	for begun == nil {
		attempt, cancel := context.WithTimeout(ctx, 10*time.Second)
		if begun, err = client.Put(attempt, prefix+"begin", ""); err != nil {
			begun = nil
		}
		cancel()
	}
	say(happened{Kind: "begin", Revision: begun.Header.Revision})
	end := make(chan struct{})
	go func() {
		for response := range client.Watch(ctx, prefix, clientv3.WithPrefix(), clientv3.WithRev(begun.Header.Revision+1)) {
			if response.Err() != nil {
				say(happened{Kind: "watch ended", Error: response.Err().Error()})
			}
			for _, event := range response.Events {
				say(happened{Kind: "event", Key: string(event.Kv.Key), Value: string(event.Kv.Value), Revision: event.Kv.ModRevision})
				if string(event.Kv.Key) == prefix+"end" {
					close(end)
					return
				}
			}
		}
	}()
	over := make(chan struct{})
	go func() {
		bufio.NewReader(os.Stdin).ReadString('\n')
		close(over)
	}()
	for n := 0; ; n++ {
		select {
		case <-over:
			for {
				attempt, cancel := context.WithTimeout(ctx, 10*time.Second)
				_, err := client.Put(attempt, prefix+"end", "")
				cancel()
				if err == nil {
					break
				}
			}
			<-end
			return
		default:
		}
		what := happened{Kind: "put", Key: fmt.Sprintf("%s%d", prefix, n%5), Value: fmt.Sprint(n)}
		attempt, cancel := context.WithTimeout(ctx, 10*time.Second)
		what.Revision, err = put(attempt, what.Key, what.Value)
		cancel()
		if err != nil {
			what.Error = err.Error()
			time.Sleep(20 * time.Millisecond)
		}
		say(what)
		time.Sleep(5 * time.Millisecond)
	}
}
