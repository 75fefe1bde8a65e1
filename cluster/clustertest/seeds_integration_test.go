//go:build integration && !soak

package clustertest

const (
	defaultSeeds = 48
	loadKills    = 3
)
