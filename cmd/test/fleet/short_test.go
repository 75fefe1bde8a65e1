//go:build integration && !soak

package fleet

import "time"

const idleFor = 30 * time.Second

var long = Config{Nodes: 40, Warm: 20 * time.Second, Churn: 50 * time.Second}
