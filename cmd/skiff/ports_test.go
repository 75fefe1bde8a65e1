package main

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"testing"
)

// unusedPorts are ports of 127.0.0.1 that nobody has, for TCP and UDP. They are
// below those that connections get: a server that stops finds them free again.
func unusedPorts(t *testing.T, n int) (ports []uint16) {
	t.Helper()
	lowest := 32768
	if b, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range"); err == nil {
		if _, err := fmt.Sscan(string(b), &lowest); err != nil {
			t.Fatalf("ports for connections: %q: %v", b, err)
		}
	}
	for range 1000 {
		port := lowest - 1 - rand.IntN(lowest/2)
		address := fmt.Sprintf("127.0.0.1:%d", port)
		l, err := net.Listen("tcp", address)
		if err != nil {
			continue
		}
		defer l.Close() // when all are found: no two are the same
		if u, err := net.ListenPacket("udp", address); err == nil {
			u.Close()
			if ports = append(ports, uint16(port)); len(ports) == n {
				return ports
			}
		}
	}
	t.Fatalf("fewer than %d ports are free", n)
	return nil
}
