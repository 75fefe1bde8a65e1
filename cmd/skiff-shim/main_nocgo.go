//go:build !cgo

package main

import (
	"fmt"
	"os"
)

// Without cgo libcontainer cannot enter namespaces. The file keeps
// `go build ./...` and linters working where cgo is off.
func main() {
	fmt.Fprintln(os.Stderr, "skiff-shim was built without cgo and cannot run containers: see node/runtime/embedded/README.md")
	os.Exit(1)
}
