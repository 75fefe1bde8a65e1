package main

import (
	"os"
	"strings"

	"github.com/cheggaaa/pb/v3"
	"golang.org/x/term"

	"github.com/skiff-sh/skiff/node/image"
)

// bar shows progress on a terminal and nothing elsewhere.
type bar struct {
	name string
	pb   *pb.ProgressBar
}

const barTemplate = `{{string . "prefix"}} {{bar . }} {{counters . }} {{speed . }}`

// newBar starts a bar on standard error when that is a terminal.
func newBar(name string) *bar {
	b := &bar{name: name}
	if term.IsTerminal(int(os.Stderr.Fd())) {
		b.pb = pb.ProgressBarTemplate(barTemplate).New(0).Set(pb.Bytes, true).Set("prefix", name).SetWriter(os.Stderr).Start()
	}
	return b
}

// set reports done of total bytes; total 0 means unknown.
func (b *bar) set(done, total int64) {
	if b.pb != nil {
		b.pb.SetTotal(total).SetCurrent(done)
	}
}

// image is an image.ProgressFunc.
func (b *bar) image(p image.Progress) { b.set(p.Complete, p.Total) }

func (b *bar) done() {
	if b.pb != nil {
		b.pb.Finish()
	}
}

// registryOf gives the host of a normalized image name.
func registryOf(full string) string {
	host, _, _ := strings.Cut(full, "/")
	return host
}

func trimNewline(s string) string { return strings.TrimRight(s, "\r\n") }
