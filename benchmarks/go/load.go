// A closed loop of calls by etcd's own Go client: the same load as benchmarks/loads.py, for a program in Go.
//
// The keys are there already. It connects, prints "ready", begins when a line comes on its standard input, and prints what came of it as one line of
// JSON. It ends when its standard input does, so that what it has used can be read while it still runs.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/clientv3"
)

const (
	keys   = 1000
	warmUp = 250 * time.Millisecond
	// A window is open for this many times its length at most, for a crowd whose calls take longer than that.
	patience = 6
	// Of one call: what RayKeeper's handle gives one, too.
	callTimeout = 10 * time.Second
)

type samples struct {
	Times   []float64 `json:"times"`
	Window  float64   `json:"window"`
	Done    int       `json:"done"`
	Failed  int       `json:"failed"`
	Problem string    `json:"problem"`
}

func key(number uint64) string { return fmt.Sprintf("bench/%04d", number%keys) }

func call(client *clientv3.Client, op string, name string, value string) error {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	var err error
	switch op {
	case "put":
		_, err = client.Put(ctx, name, value)
	case "get":
		_, err = client.Get(ctx, name)
	case "stale get":
		_, err = client.Get(ctx, name, clientv3.WithSerializable())
	case "txn":
		_, err = client.Txn(ctx).If(clientv3.Compare(clientv3.Version(name), ">", 0)).
			Then(clientv3.OpPut(name, value), clientv3.OpPut(name+"/2", value)).Commit()
	default:
		err = fmt.Errorf("no such operation: %s", op)
	}
	return err
}

func run(clients []*clientv3.Client, op string, value string, inFlight int, length time.Duration) samples {
	var (
		lock   sync.Mutex
		group  sync.WaitGroup
		next   uint64
		result = samples{Times: []float64{}}
		closed time.Time
		begin  = time.Now().Add(warmUp)
	)
	open := func() bool { // as Load.open in loads.py
		lock.Lock()
		defer lock.Unlock()
		if closed.IsZero() {
			now := time.Now()
			enough := now.Sub(begin) >= length && len(result.Times) >= 2*inFlight
			if enough || now.Sub(begin) >= patience*length {
				closed = now
			}
		}
		return closed.IsZero()
	}
	for worker := 0; worker < inFlight; worker++ {
		group.Add(1)
		go func(client *clientv3.Client) {
			defer group.Done()
			for open() {
				started := time.Now()
				err := call(client, op, key(atomic.AddUint64(&next, 1)), value)
				ended := time.Now()
				lock.Lock()
				if err != nil {
					result.Failed++
					if result.Problem == "" {
						result.Problem = err.Error()
					}
				} else {
					result.Done++
					if !ended.Before(begin) && closed.IsZero() {
						result.Times = append(result.Times, ended.Sub(started).Seconds())
					}
				}
				lock.Unlock()
				if err != nil {
					time.Sleep(10 * time.Millisecond)
				}
			}
		}(clients[worker%len(clients)])
	}
	group.Wait()
	result.Window = closed.Sub(begin).Seconds()
	return result
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

func main() {
	endpoint := flag.String("endpoint", "127.0.0.1:2379", "HOST:PORT")
	op := flag.String("op", "put", "put, get, 'stale get' or txn")
	inFlight := flag.Int("in-flight", 1, "calls at a time")
	connections := flag.Int("connections", 1, "that they share")
	seconds := flag.Float64("seconds", 1, "length of the window")
	flag.Parse()
	bytes := make([]byte, 256)
	for n := range bytes {
		bytes[n] = byte(n)
	}
	value := string(bytes)
	clients := make([]*clientv3.Client, *connections)
	for n := range clients {
		client, err := clientv3.New(clientv3.Config{Endpoints: []string{*endpoint}, DialTimeout: callTimeout})
		if err != nil {
			fail(err)
		}
		clients[n] = client
		if err := call(client, "get", key(0), ""); err != nil {
			fail(err)
		}
	}
	input := bufio.NewReader(os.Stdin)
	fmt.Println("ready")
	if _, err := input.ReadString('\n'); err != nil {
		return
	}
	result := run(clients, *op, value, *inFlight, time.Duration(*seconds*float64(time.Second)))
	if err := json.NewEncoder(os.Stdout).Encode(result); err != nil {
		fail(err)
	}
	_, _ = input.ReadString('\n')
}
