package main

import (
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/skiff-sh/skiff/node/eviction"
	"github.com/skiff-sh/skiff/node/imagegc"
	"github.com/skiff-sh/skiff/node/logs"
)

// houseFlags say when a node makes room, and what its pods may take. They have
// kubelet's names.
func houseFlags() []cli.Flag {
	duration := func(name, usage string, value time.Duration) cli.Flag {
		return &cli.DurationFlag{Name: name, Usage: usage, Value: value, EnvVars: env(name)}
	}
	return []cli.Flag{
		listFlag("eviction-hard", `SIGNAL<VALUE at which pods are evicted at once; replaces all defaults, "" turns them off (default: `+strings.Join(eviction.DefaultHard, ",")+`)`),
		listFlag("eviction-soft", "SIGNAL<VALUE at which pods are evicted after a grace period"),
		listFlag("eviction-soft-grace-period", "SIGNAL=DURATION for each --eviction-soft"),
		listFlag("eviction-minimum-reclaim", "SIGNAL=VALUE that is made free beyond the threshold once it is met"),
		duration("eviction-pressure-transition-period", "how long a node says that it is short of something after it was last", eviction.DefaultTransition),
		numberFlag("eviction-max-pod-grace-period", "seconds that a pod has at most when it is evicted for --eviction-soft", 0),
		numberFlag("image-gc-high-threshold", "percent of the images' disk above which unused images are removed", imagegc.Default.High),
		numberFlag("image-gc-low-threshold", "percent of the images' disk down to which they are removed", imagegc.Default.Low),
		duration("minimum-image-ttl-duration", "how long an image stays at least after it was pulled", imagegc.Default.MinAge),
		duration("image-maximum-gc-age", "an image that was not used for so long is removed; 0 for never", 0),
		stringFlag("container-log-max-size", "size at which a container's log is continued in a new file", "10Mi"),
		numberFlag("container-log-max-files", "files of a container's log that are kept", logs.MaxFiles),
		numberFlag("pod-max-pids", "processes that each pod may have; -1 for no limit", -1),
	}
}

// houseOptions are what houseFlags say.
type houseOptions struct {
	eviction    eviction.Config
	imageGC     imagegc.Policy
	logMaxSize  int64
	logMaxFiles int
	podPids     int64
}

func parseHouse(c *cli.Context) (o houseOptions, err error) {
	hard := eviction.DefaultHard
	if c.IsSet("eviction-hard") {
		hard = c.StringSlice("eviction-hard")
	}
	o.eviction.Thresholds, err = eviction.Parse(hard, c.StringSlice("eviction-soft"), c.StringSlice("eviction-soft-grace-period"), c.StringSlice("eviction-minimum-reclaim"))
	if err != nil {
		return o, usagef("%v", err)
	}
	if o.eviction.Transition = c.Duration("eviction-pressure-transition-period"); o.eviction.Transition < 0 {
		return o, usagef("--eviction-pressure-transition-period %s: want 0 or more", o.eviction.Transition)
	}
	if o.eviction.MaxPodGrace = int64(c.Int("eviction-max-pod-grace-period")); o.eviction.MaxPodGrace < 0 {
		return o, usagef("--eviction-max-pod-grace-period %d: want 0 or more", o.eviction.MaxPodGrace)
	}
	o.imageGC = imagegc.Policy{High: c.Int("image-gc-high-threshold"), Low: c.Int("image-gc-low-threshold"),
		MinAge: c.Duration("minimum-image-ttl-duration"), MaxAge: c.Duration("image-maximum-gc-age")}
	if err := o.imageGC.Check(); err != nil {
		return o, usagef("%v", err)
	}
	size, err := resource.ParseQuantity(c.String("container-log-max-size"))
	if err != nil || size.Value() < 4<<10 {
		return o, usagef("--container-log-max-size %q: want a size of at least 4Ki, such as 10Mi", c.String("container-log-max-size"))
	}
	o.logMaxSize = size.Value()
	if o.logMaxFiles = c.Int("container-log-max-files"); o.logMaxFiles < 2 {
		return o, usagef("--container-log-max-files %d: want at least 2", o.logMaxFiles)
	}
	switch n := c.Int("pod-max-pids"); {
	case n == -1:
	case n < 1:
		return o, usagef("--pod-max-pids %d: want at least 1, or -1 for no limit", n)
	default:
		o.podPids = int64(n)
	}
	return o, nil
}
