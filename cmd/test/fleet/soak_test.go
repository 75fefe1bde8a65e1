//go:build soak

package fleet

import "time"

const idleFor = 2 * time.Minute

// An hour in which a node comes or goes every three seconds and a leader every two
// minutes, compressed to ten minutes. Before them the servers' history is filled.
var long = Config{Nodes: 100, Warm: 6 * time.Minute, Churn: 10 * time.Minute}
