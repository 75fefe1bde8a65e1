package main

import (
	"testing"

	"github.com/skiff-sh/skiff/fsm"
	"github.com/skiff-sh/skiff/node/runtime/shimproto"
)

// TestShimsAreOfTheLevel: shims that run are spoken to at every feature level that
// this program works at.
func TestShimsAreOfTheLevel(t *testing.T) {
	for level := fsm.MinLevel; level <= fsm.MaxLevel; level++ {
		if v := fsm.AtLevel(level).Shim; v < shimproto.MinVersion || v > shimproto.Version {
			t.Errorf("level %d has shims of version %d, this program speaks %d to %d", level, v, shimproto.MinVersion, shimproto.Version)
		}
	}
	if v := fsm.AtLevel(fsm.MaxLevel).Shim; v != shimproto.Version {
		t.Errorf("the highest level has shims of version %d, this program speaks %d", v, shimproto.Version)
	}
}
