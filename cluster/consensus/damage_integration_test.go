//go:build integration || soak

package consensus

import "testing"

// TestEveryDamage does all damages to the files of a member.
func TestEveryDamage(t *testing.T) { runDamages(t, 1, false) }

// TestEveryDamageAfterAKill is the same for a member that could not close its log.
func TestEveryDamageAfterAKill(t *testing.T) { runDamages(t, 1, true) }
