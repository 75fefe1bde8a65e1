// Command counter is the web application that the tests and the demo run: it
// counts its visits in the redis server that REDIS_HOST names.
//
// Limits: one redis, no password; every request opens a connection of its own,
// so that each one exercises DNS and the service proxy.
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	redis := net.JoinHostPort(getenv("REDIS_HOST", "redis"), "6379")
	release := getenv("RELEASE", "v1")
	host, err := os.Hostname()
	if err != nil {
		log.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		n, err := increment(r.Context(), redis)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		fmt.Fprintf(w, "visit %d release %s host %s\n", n, release, host)
	})
	srv := &http.Server{Addr: ":" + getenv("PORT", "8080"), Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	go func() {
		<-ctx.Done()
		// Clients that were sent here before the endpoint went away are served.
		time.Sleep(time.Second)
		shut, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := srv.Shutdown(shut); err != nil {
			log.Print("shutdown: ", err)
		}
	}()
	log.Printf("counter %s listens on %s, redis at %s", release, srv.Addr, redis)
	if err := srv.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		log.Fatal(err)
	}
}

// increment sends INCR in the redis protocol (RESP) and gives the new value.
func increment(ctx context.Context, addr string) (int64, error) {
	// A resolver asks again after five seconds when its question was lost.
	d := net.Dialer{Timeout: 12 * time.Second}
	c, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(3 * time.Second)); err != nil {
		return 0, err
	}
	if _, err := c.Write([]byte("INCR visits\r\n")); err != nil {
		return 0, fmt.Errorf("ask redis: %w", err)
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return 0, fmt.Errorf("read redis' answer: %w", err)
	}
	num, ok := strings.CutPrefix(strings.TrimSpace(line), ":")
	if !ok {
		return 0, fmt.Errorf("redis answered %q", line)
	}
	return strconv.ParseInt(num, 10, 64)
}

func getenv(name, def string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return def
}
