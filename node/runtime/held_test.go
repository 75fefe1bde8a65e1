package runtime

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A question that comes while nobody runs is answered by the next skiff.
func TestSocketsOutliveSkiff(t *testing.T) {
	e := newEnv(t)
	ctx := context.Background()
	t.Cleanup(func() {
		if err := e.r.DropSockets(); err != nil {
			t.Error(err)
		}
	})
	// An address of its own: what others connect from, or listen at, takes no port of it.
	ip := fmt.Sprintf("127.77.%d.%d", os.Getpid()>>8&0xff, os.Getpid()&0xff)
	var addr string
	var udp net.PacketConn
	var tcp net.Listener
	var err error
	for range 10 { // but for who listens at all addresses
		var probe net.PacketConn
		if probe, err = net.ListenPacket("udp4", ip+":0"); err != nil {
			t.Fatal(err)
		}
		addr = probe.LocalAddr().String()
		probe.Close()
		if udp, tcp, err = e.r.Listen(ctx, addr); !errors.Is(err, unix.EADDRINUSE) {
			break
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	// Closing ends a read that waits: the sockets are still non-blocking.
	ended := make(chan error, 2)
	go func() { _, _, err := udp.ReadFrom(make([]byte, 1)); ended <- err }()
	go func() { _, err := tcp.Accept(); ended <- err }()
	time.Sleep(50 * time.Millisecond) // let them wait
	udp.Close()                       // as when skiff dies
	tcp.Close()
	for range 2 {
		select {
		case <-ended:
		case <-time.After(10 * time.Second):
			t.Fatal("a read goes on after the socket was closed")
		}
	}

	client, err := net.Dial("udp4", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if _, err := client.Write([]byte("question")); err != nil {
		t.Fatal(err)
	}
	conn, err := net.DialTimeout("tcp4", addr, time.Second)
	if err != nil {
		t.Fatalf("TCP while nobody runs: %v", err)
	}
	defer conn.Close()

	if udp, tcp, err = e.r.Listen(ctx, addr); err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	b := make([]byte, 100)
	if err := udp.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	n, from, err := udp.ReadFrom(b)
	if err != nil || string(b[:n]) != "question" {
		t.Fatalf("read %q, %v", b[:n], err)
	}
	if _, err := udp.WriteTo([]byte("answer"), from); err != nil {
		t.Fatal(err)
	}
	if err := client.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if n, err := client.Read(b); err != nil || string(b[:n]) != "answer" {
		t.Fatalf("answer %q, %v", b[:n], err)
	}
	udp.Close()

	// Another address: the old sockets go.
	if err := e.r.DropSockets(); err != nil {
		t.Fatal(err)
	}
	l, err := net.ListenPacket("udp4", addr)
	if err != nil {
		t.Fatalf("the address is still taken: %v", err)
	}
	l.Close()
}
