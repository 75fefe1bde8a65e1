// Command prober asks the service URL, and looks up NAMES, from inside a pod:
// see package traffic. Its report is at /report.
package main

import (
	"encoding/json"
	"log"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/skiff-sh/skiff/cmd/test/traffic"
)

func main() {
	every, err := time.ParseDuration(os.Getenv("EVERY"))
	if err != nil {
		log.Fatalf("EVERY: %v", err)
	}
	load := traffic.Start(traffic.Config{URL: os.Getenv("URL"), Names: strings.Fields(os.Getenv("NAMES")), Every: every})
	http.HandleFunc("/report", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(load.Report()) // the client may be gone
	})
	go func() { log.Fatal(http.ListenAndServe(":8080", nil)) }()
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	<-stop
}
