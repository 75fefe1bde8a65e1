// Command nonewprivs is installed with the set-user-ID bit: it says as whom it
// runs.
package main

import (
	"fmt"
	"os"
)

func main() { fmt.Printf("Effective uid: %d\n", os.Geteuid()) }
