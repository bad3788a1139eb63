import sys

import requests

response = requests.get(sys.argv[1], timeout=10)
print(response.text)
sys.exit(0 if response.ok else f"status {response.status_code}")
