//go:build integration

package main

import (
	"testing"

	"github.com/skiff-sh/skiff/fsm/damage"
)

// TestEveryDamagedDataDir does all damages that package damage knows to all files.
func TestEveryDamagedDataDir(t *testing.T) {
	damageServer(t, func(int, damage.Case) bool { return true })
}
