//go:build integration

package consensus

import "testing"

func TestKillAHundredTimes(t *testing.T) { runKills(t, 100) }
