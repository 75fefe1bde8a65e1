//go:build integration

package main

import (
	"testing"

	"github.com/skiff-sh/skiff/fsm/damage"
)

// TestEveryDamagedDataDir does all damages that package damage knows to all files.
func TestEveryDamagedDataDir(t *testing.T) {
	damageServer(t, false, func(int, damage.Case) bool { return true })
}

// TestEveryDamagedRestore does them to the small files of a server in a later epoch.
func TestEveryDamagedRestore(t *testing.T) {
	damageServer(t, true, func(_ int, c damage.Case) bool { return c.File == "raft/epoch" || c.File == "raft/member" })
}
