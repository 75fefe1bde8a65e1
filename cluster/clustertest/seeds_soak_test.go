//go:build soak

package clustertest

const (
	defaultSeeds = 2000
	loadKills    = 15
)
