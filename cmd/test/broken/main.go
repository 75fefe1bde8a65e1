// Command broken says that it is a skiff, and is none: as a server or agent it
// ends at once, or does nothing for ever. Roll-outs have to get over it.
//
// The build sets version, and how: exit or hang.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"time"
)

var (
	version  = "0.0.0"
	maxLevel = "1"
	how      = "exit"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "version" {
		level, err := strconv.Atoi(maxLevel)
		if err == nil {
			err = json.NewEncoder(os.Stdout).Encode(map[string]any{"skiff": version, "platform": runtime.GOOS + "/" + runtime.GOARCH, "minLevel": 1, "maxLevel": level})
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "broken:", err)
			os.Exit(1)
		}
		return
	}
	fmt.Fprintln(os.Stderr, "broken: started as", os.Args[1:], "and will", how)
	if how == "hang" {
		time.Sleep(24 * time.Hour)
	}
	os.Exit(1)
}
